"""What can be embedded, by name. No torch here, so that `--help` is fast."""

from collections.abc import Sequence

KINDS = {
    "image": "the picture as a whole",
    "regions": "each region",
    "patches": "each cell of the map",
    "maps": "the map itself, for safetensors",
}
REGIONS = {
    "auto": "boxes where the data has any, else a grid",
    "boxes": "annotated objects; of a picture that has none, its proposals",
    "proposals": "the proposals of the data",
    "masks": "each class of the picture's label map",
    "grid": "equal boxes that cover the picture",
}


def check_kinds(kinds: str | Sequence[str]) -> tuple[str, ...]:
    """Names of `KINDS`, in its order, from a list or a comma-separated line."""
    names = [name.strip() for name in kinds.split(",")] if isinstance(kinds, str) else list(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise ValueError(f"features is {', '.join(names) or 'empty'}; expected some of {', '.join(KINDS)}.")
    return tuple(kind for kind in KINDS if kind in names)


def check_regions(regions: str, grid: int) -> None:
    """Raises ValueError for regions that do not exist."""
    if regions not in REGIONS:
        raise ValueError(f"regions is {regions!r}; expected one of {', '.join(REGIONS)}.")
    if not 1 <= grid <= 64:
        raise ValueError(f"grid is {grid}; expected 1 to 64 boxes per side.")
