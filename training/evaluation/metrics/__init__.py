"""Local modules of Hugging Face `evaluate`: `evaluate.load("./training/evaluation/metrics/object_knn")`, offline.

Each only hands its arguments to the function of this project that does the work, so the numbers are the same. They
need `modeling_decodepos` to be importable: run from the checkout, or install the package.
"""
