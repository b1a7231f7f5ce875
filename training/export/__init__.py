"""Weights to and from other libraries, and as graphs: `python -m training.export`."""
