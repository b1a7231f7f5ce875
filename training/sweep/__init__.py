"""Comparisons of training runs: one thing changed at a time, several seeds, measured alike."""
