"""The ways in which a map can be read: where its cells are taken to lie. No torch here, so that `--help` is fast."""

READINGS = {
    "own": "as a checkpoint of ours was trained, every other network as aligned",
    "aligned": "cells are patches; RoIAlign with aligned=True",
    "legacy": "half a cell further right and down; RoIAlign with aligned=False",
    "known": "by the kernels, strides and paddings that the network runs",
    "measured": "by the gradient of single cells",
}


def choose_reading(reading: str, centre_cells: bool = False) -> str:
    """A reading by name; `centre_cells` is the former flag for `known`."""
    if reading not in READINGS:
        raise ValueError(f"reading is {reading!r}; expected one of {', '.join(READINGS)}.")
    if centre_cells and reading not in ("own", "known"):
        raise ValueError(f"centre_cells is another name for the reading known, but reading is {reading}.")
    return "known" if centre_cells else reading
