"""What a run can be told: four dataclasses, a recipe reader, and the origin of every default.

A recipe is a flat YAML file; its keys are the fields below, unique over all four groups. The command line overrides it
with `--key value`. An unknown key is an error with the nearest known one in the message.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from modeling_decodepos.losses import OBJECTIVES
from modeling_decodepos.region_cutout import CUT_FORMS
from modeling_decodepos.repositioning import FOREGROUND_SCALES

PAPER = "paper (architecture figure)"
SOCO = "SoCo"
FOLLOW_UP = "follow-up paper's code"
PEERS = "COCO recipes of peers (ORL, SlotCon)"
OURS = "ours"

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "scenes_smoke.yaml"


def _key(default: Any, help: str, origin: str, choices: tuple[str, ...] | None = None) -> Any:
    return field(default=default, metadata={"help": help, "origin": origin, "choices": choices})


@dataclass(frozen=True)
class DataArguments:
    """Which images and regions."""

    data: str = _key(
        "data/scenes", "Folder or Hub id of a data set in our Parquet layout, or a plain folder of pictures.", OURS
    )
    split: str = _key("train", "Split to train on; a plain folder is all 'train'.", OURS)
    region_source: str = _key(
        "auto",
        "Where regions come from: the `regions` column (proposals), the `objects` column (annotations), random boxes "
        "(new ones in every epoch) or a grid, which need no column; auto: proposals, else annotations, and random "
        "boxes in a plain folder.",
        PAPER + " uses selective search; the others and auto are ours",
        ("auto", "regions", "objects", "random", "grid"),
    )
    max_broken_share: float = _key(0.01, "Stop when more than this share of the images cannot be read.", OURS)
    cache_px: int = _key(
        0,
        "Decode every image once, into a cache of pixels whose shorter side is at most this; 0 decodes the originals "
        "each time.",
        OURS,
    )
    cache_dir: str = _key(
        "",
        "Folder of that cache; empty: a folder in .cache beside output_dir, shared by runs on the same images.",
        OURS,
    )
    streaming: bool = _key(
        False,
        "Read Parquet files from front to back instead of keeping the data set on disk; a run then continues exactly "
        "with the same number of processes and workers only.",
        OURS,
    )
    stream_block: int = _key(
        1000, "When streaming: images that a worker holds, mixes, and takes donors from; they stay encoded.", OURS
    )
    num_workers: int = _key(0, "Processes that make views; 0 makes them in the training process.", OURS)

    def __post_init__(self) -> None:
        _check_range("num_workers", self.num_workers, 0, 1000)
        _check_range("cache_px", self.cache_px, 0, 100_000)
        _check_range("stream_block", self.stream_block, 2, 10_000_000)
        if self.cache_dir and not self.cache_px:
            raise ValueError(
                f"cache_dir is {self.cache_dir!r}, but cache_px is 0, so nothing would be cached. Set cache_px to the "
                "shorter side to keep, such as 288, or leave cache_dir out."
            )
        if self.streaming and self.cache_px:
            raise ValueError(f"cache_px is {self.cache_px}, but streaming keeps nothing on disk: choose one of them.")
        _check_range("max_broken_share", self.max_broken_share, 0, 1)


@dataclass(frozen=True)
class ViewArguments:
    """How an image becomes views."""

    view_size_px: int = _key(224, "Side of a full-size view.", PAPER)
    small_view_scale: float = _key(0.5, "Side of crop_small and crop_cut_small relative to a full-size view.", PAPER)
    num_regions: int = _key(
        4,
        "Regions per image (K); the paper's number is unknown. Images with fewer contribute fewer.",
        SOCO + ", which repeats regions up to K; not repeating is ours",
    )
    crop_scale_min: float = _key(0.6, "Least share of the image's area in the crop.", SOCO)
    crop_scale_max: float = _key(1.0, "Greatest share of the image's area in the crop.", SOCO)
    crop_aspect: float = _key(4 / 3, "The crop's aspect ratio lies between 1/x and x.", SOCO)
    crop_attempts: int = _key(5, "Crops tried until half of the regions are in view (demand halves each time).", SOCO)
    min_region_side: float = _key(0.1, "A region narrower than this share of a view is left out.", OURS)
    flip: str = _key(
        "own",
        "Mirroring with probability 1/2: each view on its own, all views of an image alike, or none. Alike lets the "
        "network solve the task by position.",
        OURS + " (SoCo flips each view on its own too; the paper's is unknown)",
        ("own", "shared", "none"),
    )
    cut_form: str = _key("collaborative", "Form of region augmentation.", FOLLOW_UP, tuple(CUT_FORMS))
    cut_probability: float = _key(
        1.0, "Probability that a view made to be cut is cut at all.", OURS + "; the follow-up cuts half of its views"
    )
    cut_ratio_min: float = _key(0.2, "Least share cut from each region.", OURS + "; the follow-up draws from 0.2-0.6")
    cut_ratio_max: float = _key(0.4, "Greatest share cut from each region.", OURS + "; the figure shows 0.1-0.47")
    cut_surroundings: bool = _key(
        True, "Whether random boxes carry cuts outside the regions too.", PAPER + " shows 45 % of the outside cut"
    )
    cut_grid_px: int = _key(1, "Cuts fall on a grid of this many pixels; give a ViT's patch size.", FOLLOW_UP)
    repositioning: str = _key(
        "scaled",
        "How the foreground moves: 'paper' keeps its size (often there is no room to move), 'scaled' makes it smaller "
        "first, 'none' replaces the surroundings only.",
        OURS + "; 'paper' as measured on the figure",
        (*FOREGROUND_SCALES, "none"),
    )
    cut_foreground: bool = _key(True, "Whether the donor also shows through cuts inside moved regions.", PAPER)
    donor: str = _key(
        "image",
        "What surrounds moved regions: another image of the split, or the mean colour.",
        PAPER + " shows another image; which one is unknown, ours is drawn from (seed, epoch, index)",
        ("image", "mean"),
    )
    max_foreground: float = _key(
        0.9, "Largest regions are dropped until the foreground covers at most this share of the view.", OURS
    )
    mixed_share: float = _key(
        1.0,
        "Share of the images that get the mixed view; the follow-up mixes 0.25.",
        OURS + "; the paper's is unknown",
    )
    jitter_probability: float = _key(0.8, "Probability of colour jitter.", SOCO)
    brightness: float = _key(0.4, "Strength of brightness jitter.", SOCO)
    contrast: float = _key(0.4, "Strength of contrast jitter.", SOCO)
    saturation: float = _key(0.2, "Strength of saturation jitter.", SOCO)
    hue: float = _key(0.1, "Strength of hue jitter.", SOCO)
    grayscale_probability: float = _key(0.2, "Probability of dropping colour.", SOCO)
    blur_probability_whole: float = _key(1.0, "Probability of blur on views of the whole image.", SOCO)
    blur_probability: float = _key(0.1, "Probability of blur on the other views.", SOCO)
    solarize_probability: float = _key(0.2, "Probability of solarisation on the other views.", SOCO)
    views_on: str = _key(
        "workers",
        "Where views are made: by the workers on the CPU, or on the device that trains; the workers then only decode "
        "and draw. Both give the same views but for rounding; 'device' pays where processors are too slow for a GPU.",
        OURS,
        ("workers", "device"),
    )

    def __post_init__(self) -> None:
        _check_range("small_view_scale", self.small_view_scale, 0, 1, low_open=True)
        _check_order("crop_scale", self.crop_scale_min, self.crop_scale_max, 0, 1)
        _check_order("cut_ratio", self.cut_ratio_min, self.cut_ratio_max, 0, 0.99)
        for name in ("mixed_share", "max_foreground", "jitter_probability", "grayscale_probability"):
            _check_range(name, getattr(self, name), 0, 1)
        _check_range("min_region_side", self.min_region_side, 0, 1, low_open=True)
        _check_range("crop_aspect", self.crop_aspect, 1, 100)
        for name in ("brightness", "contrast", "saturation"):
            _check_range(name, getattr(self, name), 0, 10)
        _check_range("hue", self.hue, 0, 0.5)
        for name in ("blur_probability", "blur_probability_whole", "solarize_probability", "cut_probability"):
            _check_range(name, getattr(self, name), 0, 1)
        for name in ("view_size_px", "num_regions", "crop_attempts", "cut_grid_px"):
            _check_range(name, getattr(self, name), 1, 100_000)
        for size in (self.view_size_px, self.small_view_px):
            if size % self.cut_grid_px:
                raise ValueError(f"cut_grid_px {self.cut_grid_px} does not divide the view size {size}.")

    @property
    def small_view_px(self) -> int:
        """Side of a small view."""
        return round(self.view_size_px * self.small_view_scale)


@dataclass(frozen=True)
class ModelArguments:
    """Which network, and which loss."""

    backbone: str = _key(
        "resnet50",
        "resnet50, resnet18, vit_small, resnet_tiny or vit_tiny (small images, two cores), or a Hub id or folder with "
        "weights to start from.",
        PAPER + " draws a C4 backbone; ResNet-50 is inferred",
    )
    objective: str = _key("both", "Table of loss pairs; see modeling_decodepos/losses.py.", PAPER, tuple(OBJECTIVES))
    depositioning_weight: float = _key(1.0, "Weight of the de-positioning term (lambda).", OURS + "; paper's unknown")
    region_bins: int = _key(14, "Bins per side of a pooled region in a full-size view.", SOCO)
    projector_hidden_size: int = _key(4096, "Width of projector and predictor.", SOCO)
    projection_size: int = _key(256, "Size of the compared embedding.", SOCO)
    use_predictor: bool = _key(True, "Whether the student has a predictor (not drawn in the paper's figure).", SOCO)
    centre_cells: bool = _key(
        False,
        "Whether regions are read where the cells of a ResNet's map have their centres; RoIAlign reads half a stride "
        "up and left of that.",
        OURS,
    )
    anchor_weight: float = _key(
        0.0,
        "Weight of the anchor that keeps region features near those of the weights the run starts from; 0 for none.",
        OURS,
    )
    sync_batch_norm: bool = _key(
        True, "Whether batch norms share their statistics over GPUs; has no effect on CPUs or one device.", SOCO
    )
    compile: bool = _key(False, "Whether torch.compile is used for the stages of the networks.", OURS)

    def __post_init__(self) -> None:
        for name in ("depositioning_weight", "anchor_weight"):
            _check_range(name, getattr(self, name), 0, 1_000_000)
        for name in ("region_bins", "projector_hidden_size", "projection_size"):
            _check_range(name, getattr(self, name), 1, 1_000_000)


@dataclass(frozen=True)
class RunArguments:
    """How it is optimised, where it runs and what it leaves behind."""

    output_dir: str = _key("runs/scenes_smoke", "Folder of the run.", OURS)
    max_steps: int = _key(0, "Updates in all; 0 means `epochs` decides.", OURS)
    epochs: int = _key(800, "Passes over the data, when max_steps is 0.", FOLLOW_UP)
    global_batch_size: int = _key(512, "Images per update, over all devices and accumulation steps.", PEERS)
    accumulation_steps: int = _key(1, "Micro-batches per update and device.", OURS)
    optimizer: str = _key("lars", "Optimiser.", SOCO, ("lars", "adamw"))
    base_learning_rate: float = _key(
        1.0, "Learning rate per 256 images; the rate used is this times batch / 256.", SOCO
    )
    min_learning_rate: float = _key(1e-6, "Learning rate that the cosine approaches.", SOCO)
    warmup_share: float = _key(
        0.0125, "Share of the run with a rising learning rate (10 of 800 epochs).", SOCO + " (10 epochs)"
    )
    weight_decay: float = _key(1e-5, "Weight decay; none on biases and normalisation.", SOCO)
    weight_decay_end: float = _key(
        -1.0, "Weight decay that a cosine reaches at the end; -1 keeps it as it is.", FOLLOW_UP + " (0.04 to 0.4, ViT)"
    )
    sgd_momentum: float = _key(0.9, "The optimiser's momentum (LARS), or AdamW's beta 1.", SOCO)
    teacher_momentum: float = _key(0.99, "The teacher's EMA coefficient at the start; it rises to 1.", SOCO)
    gradient_clip: float = _key(0.0, "Largest gradient norm; 0 does not clip.", OURS)
    seed: int = _key(0, "Seed of weights and data.", OURS)
    mixed_precision: str = _key("no", "bf16 runs the networks in bfloat16.", OURS, ("no", "bf16"))
    cpu: bool = _key(False, "Run on the CPU even where there is an accelerator.", OURS)
    save_steps: int = _key(0, "Updates between checkpoints; 0 saves at the end only.", OURS)
    keep_checkpoints: int = _key(2, "Newest checkpoints kept, beside the best one; older ones are deleted.", OURS)
    resume: str = _key(
        "auto", "auto continues the newest checkpoint of output_dir, none starts anew, or a path.", OURS
    )
    allow_change: str = _key(
        "", "Keys (with commas between) that a continued run may change; `processes` for another world size.", OURS
    )
    processes: int = _key(
        0, "Processes there must be, over all machines; 0 trusts the launcher's word for how many it started.", OURS
    )
    tracker: str = _key(
        "none", "Where log lines go beside log.jsonl.", OURS, ("none", "tensorboard", "trackio", "wandb")
    )
    log_steps: int = _key(5, "Updates between log lines.", OURS)
    max_immobile_share: float = _key(
        1.0, "Stop with an error if more than this share of the mixed samples had no room to move.", OURS
    )
    probe_count: int = _key(0, "Scenes in the probe before and after the run; 0 for none.", OURS)
    measure_steps: int = _key(
        0, "Updates between measures of what the features hold (training/probes/during.py); 0 measures never.", OURS
    )
    measure_images: int = _key(
        512, "Images measured on, half as gallery, half as queries; they stay in memory as 8-bit views.", OURS
    )
    collapse_warn: float = _key(
        0.5, "Warn once when the embeddings' spread falls below this share of a perfect one; 0 never warns.", OURS
    )
    collapse_stop: float = _key(
        0.1,
        "Stop the run when the spread stays below this share of a perfect one, or all embeddings lie on one line; 0 "
        "never stops.",
        OURS,
    )
    collapse_patience: int = _key(5, "Log lines in a row below collapse_stop that stop the run.", OURS)
    collapse_grace_steps: int = _key(100, "First updates, in which no collapse stops the run.", OURS)
    watchdog_share: float = _key(
        0.7,
        "A run that continues given weights stops when its object k-NN (or what comes closest without classes) falls "
        "below this share of what it began with; 0 never stops. Needs measure_steps.",
        OURS,
    )

    def __post_init__(self) -> None:
        for name in ("global_batch_size", "accumulation_steps", "log_steps", "keep_checkpoints", "collapse_patience"):
            _check_range(name, getattr(self, name), 1, 10_000_000)
        _check_range("measure_images", self.measure_images, 4, 1_000_000)
        for name in ("max_steps", "save_steps", "seed", "probe_count", "processes", "measure_steps"):
            _check_range(name, getattr(self, name), 0, 2**31)
        for name in ("base_learning_rate", "min_learning_rate", "weight_decay", "gradient_clip"):
            _check_range(name, getattr(self, name), 0, 1_000_000)
        _check_range("collapse_grace_steps", self.collapse_grace_steps, 0, 2**31)
        _check_range("weight_decay_end", self.weight_decay_end, -1, 1_000_000)
        for name in ("warmup_share", "teacher_momentum", "sgd_momentum", "max_immobile_share"):
            _check_range(name, getattr(self, name), 0, 1)
        for name in ("collapse_warn", "collapse_stop", "watchdog_share"):
            _check_range(name, getattr(self, name), 0, 1)
        if self.max_steps == 0 and self.epochs < 1:
            raise ValueError("max_steps is 0 and epochs is below 1: one of them must say how long the run is.")


GROUPS = (DataArguments, ViewArguments, ModelArguments, RunArguments)


@dataclass(frozen=True)
class Recipe:
    """A complete run."""

    data: DataArguments
    views: ViewArguments
    model: ModelArguments
    run: RunArguments
    name: str = "run"

    def __post_init__(self) -> None:
        if self.data.streaming and self.run.measure_steps:
            raise ValueError(
                f"measure_steps is {self.run.measure_steps}, but measures need images that are at hand, and streaming "
                "keeps none: --measure_steps 0, or streaming false."
            )

    def values(self) -> dict[str, Any]:
        """Every key with its value, flat."""
        groups = (self.data, self.views, self.model, self.run)
        return {key: value for group in groups for key, value in dataclasses.asdict(group).items()}


def origins() -> dict[str, str]:
    """Where each key's default comes from."""
    return {f.name: f.metadata["origin"] for group in GROUPS for f in dataclasses.fields(group)}


def load_recipe(path: Path | str, overrides: dict[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with overrides on top.

    Raises:
        FileNotFoundError: There is no such file; the message lists the recipes that exist.
        ValueError: A key is unknown or a value has the wrong type or range.
    """
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in DEFAULT_RECIPE.parent.glob("*.yaml")))
        raise FileNotFoundError(
            f"no recipe at {path}; expected a path. training/recipes/NAME.yaml is there for: {known}."
        )
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_RecipeLoader) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no YAML: {error}") from None
    except ValueError as error:  # a key that stands there twice
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds a {type(values).__name__}; expected lines of `key: value`.")
    source = f"{path} and the command line" if overrides else str(path)
    return build_recipe({**values, **(overrides or {})}, name=path.stem, source=source)


def build_recipe(values: dict[str, Any], name: str = "run", source: str = "the recipe") -> Recipe:
    """A validated recipe from flat keys; keys left out take their defaults."""
    fields = {f.name: (group, f) for group in GROUPS for f in dataclasses.fields(group)}
    chosen: dict[type, dict[str, Any]] = {group: {} for group in GROUPS}
    for key, value in values.items():
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else " `--help` lists all keys."
            raise ValueError(f"{source}: unknown key {key!r}.{hint}")
        group, f = fields[key]
        chosen[group][key] = _coerce(key, value, get_type_hints(group)[key], f.metadata["choices"], source)
    groups: list[Any] = []
    for group in GROUPS:
        try:
            groups.append(group(**chosen[group]))
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None
    data, views, model, run = groups
    try:
        return Recipe(data, views, model, run, name)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def parse_command_line(arguments: list[str] | None = None) -> Recipe:
    """The recipe a command line asks for: an optional YAML file first, then `--key value` overrides."""
    parser = argparse.ArgumentParser(
        prog="training/pretrain.py",
        description="Pre-train with de-coupling and de-positioning. Every key of a recipe is a flag too.",
        formatter_class=argparse.RawTextHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("recipe", nargs="?", default=str(DEFAULT_RECIPE), help="recipe file (default: scenes_smoke)")
    for group in GROUPS:
        section = parser.add_argument_group(group.__name__, (group.__doc__ or "").strip())
        for f in dataclasses.fields(group):
            choices = f" One of: {', '.join(f.metadata['choices'])}." if f.metadata["choices"] else ""
            text = f"{f.metadata['help']}{choices}\n(default: {f.default}; origin: {f.metadata['origin']})"
            kind = get_type_hints(group)[f.name]
            # A bare `--cpu` means true; only an explicit true or false may follow it.
            bare: dict[str, Any] = {"nargs": "?", "const": "true"} if kind is bool else {}
            section.add_argument(f"--{f.name}", metavar="VALUE", help=text.replace("%", "%%"), **bare)
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        key = unknown[0].lstrip("-").split("=")[0]
        near = difflib.get_close_matches(key, origins(), n=1)
        parser.exit(
            2, f"unknown argument {unknown[0]}." + (f" Did you mean --{near[0]}?\n" if near else " See --help.\n")
        )
    given = vars(known)
    words = {f.name for group in GROUPS for f in dataclasses.fields(group) if get_type_hints(group)[f.name] is str}
    try:
        overrides = {
            # A shell's word is a word: a path may look like a date or a list, or be empty.
            key: value if key in words else _read_value(value)
            for key, value in given.items()
            if key != "recipe" and value is not None
        }
        return load_recipe(given["recipe"], overrides)
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
        sys.exit(2)


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 (no dot) as a number and takes no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The values by key; plain YAML keeps the last of two and says nothing."""
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if (first := lines.setdefault(key.value, line)) != line:
                raise ValueError(f"the key {key.value!r} stands on line {first} and on line {line}; keep one of them.")
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_value(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_RecipeLoader)
    except yaml.YAMLError:
        return text  # no number and no bool; `_coerce` says so


def _coerce(key: str, value: Any, kind: type, choices: tuple[str, ...] | None, source: str) -> Any:
    """The value in the field's own type; a bool is no number and a word no bool."""
    if kind is str and isinstance(value, bool):  # YAML reads no / off as false; a word was meant
        value = "no" if value is False else "yes"
    accepted: Any = {int: int, float: (int, float), bool: bool, str: (str, Path)}[kind]
    if kind is bool and isinstance(value, str) and value.endswith((".yaml", ".yml")):
        raise ValueError(f"{source}: --{key} took {value!r} for its value; put the recipe before the flags.")
    if not isinstance(value, accepted) or (kind in (int, float) and isinstance(value, bool)):
        raise ValueError(f"{source}: {key} is {value!r} ({type(value).__name__}); expected {kind.__name__}.")
    if choices and value not in choices:
        raise ValueError(f"{source}: {key} is {value!r}; expected one of {', '.join(choices)}.")
    return kind(value)


def _check_range(name: str, value: float, low: float, high: float, low_open: bool = False) -> None:
    if not low <= value <= high or (low_open and value == low):
        raise ValueError(f"{name} is {value}; expected {'more than' if low_open else 'from'} {low} to {high}.")


def _check_order(name: str, low: float, high: float, least: float, most: float) -> None:
    if not least <= low <= high <= most:
        raise ValueError(f"{name}_min is {low} and {name}_max {high}; expected {least} <= min <= max <= {most}.")
