"""The three augmentations of the paper: cut regions, replace what is around them, move them."""
