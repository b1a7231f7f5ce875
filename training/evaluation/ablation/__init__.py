"""Comparisons of training runs: the same run with one thing changed at a time, several seeds, measured alike."""
