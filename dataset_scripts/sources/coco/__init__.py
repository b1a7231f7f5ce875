"""COCO's annotation files and photos."""
