"""Builders: sources in, Parquet out. `python -m dataset_scripts.prepare --help` lists them."""
