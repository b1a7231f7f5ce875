"""Weights to and from other libraries, and as graphs: what `python -m training.export` is made of."""
