"""Rows of a source to shards of Parquet, in processes or on a cluster."""
