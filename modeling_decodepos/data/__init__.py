"""Pictures and their rows: read from files, drawn, and the Parquet contract that every part of decodepos shares."""
