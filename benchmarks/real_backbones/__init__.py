"""Networks with trained weights, from packages that carry them: `python -m benchmarks.real_backbones --output DIR`."""
