"""Read-outs and intervals: ridge, neighbours, bootstrap, spread."""
