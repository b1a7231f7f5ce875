"""What a run can be told: four dataclasses, a recipe reader, and the origin of every default.

A recipe is a flat YAML file; its keys are the fields below, unique over all four groups. The command line overrides it
with `--key value`. An unknown key is an error with the nearest known one in the message. This file imports no torch,
so that `--help` answers at once; a test holds the choices below to the tables of the library.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modeling_decodepos.commands.settings import (
    CommandParser,
    add_flags,
    check,
    fields,
    from_values,
    given,
    key,
    nearest,
    read_yaml,
    refuse_unknown,
)
from training.precision import fast_precision

PAPER = "paper (architecture figure)"
SOCO = "SoCo"
FOLLOW_UP = "follow-up paper's code"
PEERS = "COCO recipes of peers (ORL, SlotCon)"
OURS = "ours"

SHARE = (0, 1)
COUNT = (1, 10_000_000)
SIDE = (8, 16_384)
FROM_ZERO = (0, 2**31)

_OBJECTIVES = (
    *("both", "byol_image", "byol_region", "decoupling", "depositioning", "both_uncut_teacher"),
    *("both_alone_teacher", "both_apart"),
    *("isolated", "isolated_unmoved", "isolated_both"),
)

RETIRED = {"views_on": "workers"}
"""Keys of earlier versions, with the only value that still says what is done."""

DEFAULT_RECIPE = Path(__file__).parent / "recipes" / "scenes_smoke.yaml"


@dataclass(frozen=True)
class DataArguments:
    """Which images and regions."""

    data: str = key("data/scenes", "Data set in our Parquet layout (folder or Hub id), or a folder of pictures.", OURS)
    split: str = key("train", "Split to train on; a plain folder is all 'train'.", OURS)
    region_source: str = key(
        "auto",
        "Where regions come from: the `regions` column (proposals), the `objects` column (annotations), random boxes "
        "(new ones in every epoch) or a grid, which need no column; auto: proposals, else annotations, and random "
        "boxes in a plain folder.",
        PAPER + " uses selective search; the others and auto are ours",
        choices=("auto", "regions", "objects", "random", "grid"),
    )
    max_broken_share: float = key(0.01, "Stop when more of the images than this cannot be read.", OURS, within=SHARE)
    strict_jpeg: bool = key(
        True,
        "Count a JPEG that libjpeg calls corrupt as an image that cannot be read; false takes what comes out of it. A "
        "cache keeps what it was built with.",
        OURS,
    )
    cache_px: int = key(
        0,
        "Decode images once, to a cache of pixels with a shorter side of at most this; 0: no cache.",
        OURS,
        within=(0, 100_000),
    )
    cache_dir: str = key(
        "", "Folder of that cache; empty: one in .cache beside output_dir, shared by runs on the same images.", OURS
    )
    streaming: bool = key(
        False,
        "Read Parquet files from front to back instead of keeping the data set on disk; a run then continues exactly "
        "with the same number of processes and workers only.",
        OURS,
    )
    stream_block: int = key(
        1000,
        "When streaming: encoded images that a worker holds to mix and take donors from.",
        OURS,
        within=(2, 10_000_000),
    )
    hold_out: int = key(
        0,
        "Pictures of the training split that are kept aside to measure on, where the data have no validation split; "
        "at most a tenth of them.",
        OURS,
        within=FROM_ZERO,
    )
    num_workers: int = key(0, "Processes that make views; 0: the training process does.", OURS, within=(0, 1000))

    def __post_init__(self) -> None:
        check(self)
        if self.cache_dir and not self.cache_px:
            raise ValueError(
                f"cache_dir is {self.cache_dir!r}, but cache_px is 0, so nothing would be cached. Set cache_px to the "
                "shorter side to keep, such as 288, or leave cache_dir out."
            )
        if self.streaming and self.cache_px:
            raise ValueError(f"cache_px is {self.cache_px}, but streaming keeps nothing on disk: choose one of them.")
        if self.streaming and self.hold_out:
            raise ValueError(
                f"hold_out is {self.hold_out}, but streaming reads every picture of the split: --hold_out 0, or "
                "streaming false."
            )


@dataclass(frozen=True)
class ViewArguments:
    """How an image becomes views."""

    view_size_px: int = key(224, "Side of a full-size view.", PAPER, within=SIDE)
    small_view_scale: float = key(
        0.5, "Side of crop_small and crop_cut_small relative to a full-size view.", PAPER, within=(None, 1), above=0
    )
    alone_size_px: int = key(96, "Side of the picture that a region alone becomes.", OURS, within=SIDE)
    num_regions: int = key(
        4,
        "Regions per image (K); the paper's number is unknown. Images with fewer contribute fewer.",
        SOCO + ", which repeats regions up to K; not repeating is ours",
        within=COUNT,
    )
    crop_scale_min: float = key(0.6, "Least share of the image's area in the crop.", SOCO, within=SHARE)
    crop_scale_max: float = key(1.0, "Greatest share of the image's area in the crop.", SOCO, within=SHARE)
    crop_aspect: float = key(4 / 3, "The crop's aspect ratio lies between 1/x and x.", SOCO, within=(1, 100))
    crop_attempts: int = key(
        5, "Crops tried until half of the regions are in view (demand halves each time).", SOCO, within=COUNT
    )
    min_region_side: float = key(
        0.1, "A region narrower than this share of a view is left out.", OURS, within=(None, 1), above=0
    )
    flip: str = key(
        "own",
        "Mirroring with probability 1/2: each view on its own, all views of an image alike, or none. Alike lets the "
        "network solve the task by position.",
        OURS + " (SoCo flips each view on its own too; the paper's is unknown)",
        choices=("own", "shared", "none"),
    )
    quarter_turns: bool = key(
        False, "Whether each view is turned by a random number of quarters of a circle, on its own.", OURS
    )
    cut_form: str = key(
        "collaborative", "Form of region cuts.", FOLLOW_UP, choices=("collaborative", "independent", "spilling")
    )
    cut_probability: float = key(
        1.0, "Probability of a cut in views made to be cut.", OURS + "; the follow-up cuts half", within=SHARE
    )
    cut_ratio_min: float = key(
        0.2, "Least share cut from each region.", OURS + "; the follow-up draws from 0.2-0.6", within=(0, 0.99)
    )
    cut_ratio_max: float = key(
        0.4, "Greatest share cut from each region.", OURS + "; the figure shows 0.1-0.47", within=(0, 0.99)
    )
    cut_surroundings: bool = key(
        True, "Whether random boxes carry cuts outside the regions too.", PAPER + " shows 45 % of the outside cut"
    )
    cut_grid_px: int = key(1, "Cuts fall on a grid of so many pixels; a ViT's patch size.", FOLLOW_UP, within=COUNT)
    repositioning: str = key(
        "scaled",
        "How the foreground moves: 'paper' keeps its size (often there is no room to move), 'scaled' makes it smaller "
        "first, 'none' replaces the surroundings only.",
        OURS + "; 'paper' as measured on the figure",
        choices=("paper", "scaled", "none"),
    )
    cut_foreground: bool = key(True, "Whether the donor also shows through cuts inside moved regions.", PAPER)
    donor: str = key(
        "image",
        "What surrounds moved regions: another image of the split, or the mean colour.",
        PAPER + " shows another image; which one is unknown, ours is drawn from (seed, epoch, index)",
        choices=("image", "mean"),
    )
    max_foreground: float = key(
        0.9, "Largest regions are dropped until the rest covers at most this share of the view.", OURS, within=SHARE
    )
    mixed_share: float = key(
        1.0, "Share of images that get the mixed view.", OURS + "; follow-up 0.25, paper unknown", within=SHARE
    )
    jitter_probability: float = key(0.8, "Probability of colour jitter.", SOCO, within=SHARE)
    brightness: float = key(0.4, "Strength of brightness jitter.", SOCO, within=(0, 10))
    contrast: float = key(0.4, "Strength of contrast jitter.", SOCO, within=(0, 10))
    saturation: float = key(0.2, "Strength of saturation jitter.", SOCO, within=(0, 10))
    hue: float = key(0.1, "Strength of hue jitter.", SOCO, within=(0, 0.5))
    grayscale_probability: float = key(0.2, "Probability of dropping colour.", SOCO, within=SHARE)
    blur_probability_whole: float = key(1.0, "Probability of blur on views of the whole image.", SOCO, within=SHARE)
    blur_probability: float = key(0.1, "Probability of blur on the other views.", SOCO, within=SHARE)
    invert_probability: float = key(0.0, "Probability of the negative of a view.", OURS, within=SHARE)
    solarize_probability: float = key(0.2, "Probability of solarisation on the other views.", SOCO, within=SHARE)

    def __post_init__(self) -> None:
        check(self)
        for name in ("crop_scale", "cut_ratio"):
            low, high = getattr(self, f"{name}_min"), getattr(self, f"{name}_max")
            if low > high:
                raise ValueError(f"{name}_min is {low} and {name}_max {high}; expected min <= max.")
        if self.small_view_px < SIDE[0]:
            raise ValueError(
                f"small_view_scale {self.small_view_scale:g} makes views of {self.small_view_px} pixels from "
                f"view_size_px {self.view_size_px}; expected at least {SIDE[0]}."
            )
        for size in (self.view_size_px, self.small_view_px):
            if size % self.cut_grid_px:
                raise ValueError(
                    f"cut_grid_px {self.cut_grid_px} does not divide the view size {size} (of view_size_px "
                    f"{self.view_size_px} and small_view_scale {self.small_view_scale:g})."
                )

    @property
    def small_view_px(self) -> int:
        """Side of a small view."""
        return round(self.view_size_px * self.small_view_scale)


@dataclass(frozen=True)
class ModelArguments:
    """Which network, and which loss."""

    backbone: str = key(
        "resnet50",
        "resnet50, resnet18, vit_small, resnet_tiny, resnet_mini or vit_tiny (small images, two cores), or a Hub id "
        "or folder with weights to start from.",
        PAPER + " draws a C4 backbone; ResNet-50 is inferred",
    )
    objective: str = key("both", "Table of loss pairs; see modeling_decodepos/losses.py.", PAPER, choices=_OBJECTIVES)
    pair_loss: str = key(
        "attract",
        "attract: a region's prediction goes to its target, as in BYOL; contrast: it must tell that target from those "
        "of the other regions of the batch on its device.",
        PAPER + "; contrast is ours, in the form of MoCo v3",
        choices=("attract", "contrast"),
    )
    depositioning_weight: float = key(
        1.0, "Weight of the de-positioning term (lambda).", OURS + "; paper's unknown", within=FROM_ZERO
    )
    region_stage: bool = key(
        True,
        "Whether a ResNet's last stage runs on regions, or on the picture, as whoever loads the plain backbone reads "
        "it.",
        SOCO,
    )
    zero_init_residual: bool = key(
        True, "Whether the blocks of a fresh ResNet start as the identity, which costs short runs of small ones.", SOCO
    )
    region_bins: int = key(14, "Bins per side of a pooled region in a full-size view.", SOCO, within=(1, 1000))
    projector_hidden_size: int = key(4096, "Width of projector and predictor.", SOCO, within=COUNT)
    projection_size: int = key(256, "Size of the compared embedding.", SOCO, within=COUNT)
    use_predictor: bool = key(True, "Whether the student has a predictor (not drawn in the paper's figure).", SOCO)
    teacher: str = key(
        "ema",
        "ema: the teacher follows the student; frozen: it stays what the run started from.",
        PAPER + "; frozen is ours",
        choices=("ema", "frozen"),
    )
    keep_start: float = key(
        0.0,
        "Share of the starting weights in those that are measured and exported, which are averages of both; needs "
        "teacher frozen.",
        OURS + "; 0.5 in Wortsman et al. (2022), for classifiers",
        within=SHARE,
    )
    batch_norm: str = key(
        "auto",
        "Batch norms of the backbone, in all of its copies: train uses and gathers the statistics of batches; frozen "
        "keeps those it came with; recalibrated keeps them too, and gathers new ones on clean pictures in the end. "
        "auto: frozen for weights that are continued, train for fresh ones.",
        SOCO + " trains them; the others are ours",
        choices=("auto", "frozen", "recalibrated", "train"),
    )
    centre_cells: bool = key(
        False,
        "Read regions where the cells of a ResNet lie, half a stride right and down of RoIAlign's aligned=True.",
        OURS,
    )
    anchor_weight: float = key(
        0.0, "Weight of an anchor to the region features of the starting weights; 0: none.", OURS, within=FROM_ZERO
    )
    sync_batch_norm: bool = key(
        True, "Whether batch norms share their statistics over GPUs; has no effect on CPUs or one device.", SOCO
    )
    compile: bool = key(False, "Whether torch.compile is used for the stages of the networks.", OURS)

    def __post_init__(self) -> None:
        check(self)
        if self.keep_start and self.teacher != "frozen":
            raise ValueError(
                f"keep_start is {self.keep_start:g}, but teacher is {self.teacher}: only a frozen teacher still has "
                "the starting weights. Set keep_start to 0, or teacher to frozen."
            )


@dataclass(frozen=True)
class RunArguments:
    """How it is optimised, where it runs and what it writes."""

    output_dir: str = key("runs/scenes_smoke", "Folder of the run.", OURS)
    max_steps: int = key(0, "Updates in all; 0 means `epochs` decides.", OURS, within=FROM_ZERO)
    epochs: int = key(800, "Passes over the data, when max_steps is 0.", FOLLOW_UP, within=FROM_ZERO)
    global_batch_size: int = key(512, "Images per update, over devices and accumulation steps.", PEERS, within=COUNT)
    accumulation_steps: int = key(1, "Micro-batches per update and device.", OURS, within=COUNT)
    optimizer: str = key("lars", "Optimiser.", SOCO, choices=("lars", "adamw"))
    base_learning_rate: float = key(
        1.0, "Learning rate per 256 images; the rate used is this times batch / 256.", SOCO, within=FROM_ZERO
    )
    min_learning_rate: float = key(1e-6, "Learning rate that the cosine approaches.", SOCO, within=FROM_ZERO)
    warmup_share: float = key(
        0.0125, "Share of the run with a rising learning rate (10 of 800 epochs).", SOCO + " (10 epochs)", within=SHARE
    )
    warmup_steps: int = key(
        0, "Least number of updates with a rising learning rate, up to half of the run.", OURS, within=FROM_ZERO
    )
    weight_decay: float = key(1e-5, "Weight decay; none on biases and normalisation.", SOCO, within=FROM_ZERO)
    weight_decay_end: float = key(
        -1.0,
        "Weight decay at the end of a cosine; -1: constant.",
        FOLLOW_UP + " (0.04 to 0.4, ViT)",
        within=(-1, 2**31),
    )
    sgd_momentum: float = key(0.9, "The optimiser's momentum (LARS), or AdamW's beta 1.", SOCO, within=(0, 0.9999))
    teacher_momentum: float = key(0.99, "The teacher's EMA coefficient at first; it rises to 1.", SOCO, within=SHARE)
    gradient_clip: float = key(0.0, "Largest gradient norm; 0 does not clip.", OURS, within=FROM_ZERO)
    seed: int = key(0, "Seed of weights and data.", OURS, within=FROM_ZERO)
    mixed_precision: str = key(
        "no",
        "bf16 runs the networks in bfloat16; auto does where this machine multiplies it in hardware, and run.json "
        "says which it was.",
        OURS,
        choices=("no", "bf16", "auto"),
    )
    cpu: bool = key(False, "Run on the CPU even where there is an accelerator.", OURS)
    save_steps: int = key(0, "Updates between checkpoints; 0 saves at the end only.", OURS, within=FROM_ZERO)
    keep_checkpoints: int = key(2, "Newest checkpoints kept, beside the best one.", OURS, within=COUNT)
    resume: str = key("auto", "auto continues the newest checkpoint of output_dir, none starts anew, or a path.", OURS)
    allow_change: str = key(
        "", "Keys (with commas between) that a continued run may change; `processes` for another world size.", OURS
    )
    processes: int = key(
        0, "Processes there must be, over all machines; 0 trusts the launcher.", OURS, within=FROM_ZERO
    )
    tracker: str = key(
        "none", "Where log lines go beside log.jsonl.", OURS, choices=("none", "tensorboard", "trackio", "wandb")
    )
    space_id: str = key(
        "", "Space on the Hub, ORG/NAME, that the tracker trackio shows a run in; without, on this machine.", OURS
    )
    log_steps: int = key(5, "Updates between log lines.", OURS, within=COUNT)
    max_immobile_share: float = key(
        1.0, "Stop with an error if more than this share of the mixed samples had no room to move.", OURS, within=SHARE
    )
    probe_count: int = key(0, "Scenes in the probe before and after the run; 0 for none.", OURS, within=FROM_ZERO)
    measure_steps: int = key(
        0, "Updates between measures of the features (training/probes/during.py); 0: never.", OURS, within=FROM_ZERO
    )
    measure_images: int = key(
        512,
        "Images measured on, half gallery, half queries; they stay in memory as 8-bit views.",
        OURS,
        within=(4, 10_000_000),
    )
    measure_size_px: int = key(
        0,
        "Side of the pictures measured on, best the one that features will be taken at; 0: view_size_px.",
        OURS,
        within=(0, 16_384),
    )
    diagnose: bool = key(
        False,
        "Whether a run that continues weights ends with a diagnosis of both ends, on the images measured on.",
        OURS,
    )
    collapse_warn: float = key(
        0.5,
        "Warn once when the embeddings' spread falls below this share of a perfect one; 0: never.",
        OURS,
        within=SHARE,
    )
    collapse_stop: float = key(
        0.1,
        "Stop the run when the spread stays below this share of a perfect one, or all embeddings lie on one line; 0 "
        "never stops.",
        OURS,
        within=SHARE,
    )
    collapse_patience: int = key(5, "Log lines in a row below collapse_stop that stop the run.", OURS, within=COUNT)
    collapse_grace_steps: int = key(100, "First updates, in which no collapse stops the run.", OURS, within=FROM_ZERO)
    watchdog_share: float = key(
        0.7,
        "A run that continues given weights stops when its object k-NN (or what comes closest without classes) falls "
        "below this share of what it began with; 0 never stops. Needs measure_steps.",
        OURS,
        within=SHARE,
    )

    def __post_init__(self) -> None:
        check(self)
        if self.max_steps == 0 and self.epochs < 1:
            raise ValueError("max_steps is 0 and epochs is below 1: one of them must say how long the run is.")
        if self.mixed_precision == "auto":
            object.__setattr__(self, "mixed_precision", fast_precision(self.cpu))


GROUPS: tuple[Any, ...] = (DataArguments, ViewArguments, ModelArguments, RunArguments)
# What `--help` shows; `--help_all` shows every key.
BRIEF = (
    *("data", "region_source", "num_workers", "view_size_px", "backbone", "objective", "centre_cells", "output_dir"),
    *("max_steps", "epochs", "global_batch_size", "base_learning_rate", "seed", "mixed_precision", "cpu", "resume"),
    *("save_steps", "measure_steps"),
)


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
        if self.data.streaming and self.model.batch_norm == "recalibrated":
            raise ValueError(
                "batch_norm is recalibrated, which needs images that are at hand, and streaming keeps none: "
                "--batch_norm frozen, or streaming false."
            )

        if unknown := sorted(self.allowed_changes - self.values().keys()):
            hint = nearest(unknown[0], self.values().keys())
            raise ValueError(f"allow_change names {unknown[0][:80]}, which is no key of a recipe.{hint}")

    @property
    def allowed_changes(self) -> set[str]:
        """Keys that a continued run may change. `processes` stands for the number of processes."""
        return {name.strip() for name in self.run.allow_change.split(",") if name.strip()}

    @property
    def measured_size_px(self) -> int:
        """Side of the pictures that the run measures its features on."""
        return self.run.measure_size_px or self.views.view_size_px

    def values(self) -> dict[str, Any]:
        """Every key with its value, flat."""
        return {
            name: value
            for group in (self.data, self.views, self.model, self.run)
            for name, value in vars(group).items()
        }


def origins() -> dict[str, str]:
    """Where each key's default comes from."""
    return {name: field.metadata["origin"] for group in GROUPS for name, field in fields(group).items()}


def load_recipe(path: Path | str, overrides: Mapping[str, Any] | None = None) -> Recipe:
    """The recipe in a YAML file, with overrides on top; ValueError for unknown keys and values that make no sense."""
    path = Path(path)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in DEFAULT_RECIPE.parent.glob("*.yaml")))
        raise FileNotFoundError(
            f"no recipe at {path}; expected a path. training/recipes/NAME.yaml is there for: {known}."
        )
    source = f"{path} and the command line" if overrides else str(path)
    return build_recipe({**read_yaml(path), **(overrides or {})}, name=path.stem, source=source)


def build_recipe(values: Mapping[str, Any], name: str = "run", source: str = "the recipe") -> Recipe:
    """A validated recipe from flat keys; keys left out take their defaults."""
    for gone, value in RETIRED.items():
        if values.get(gone, value) != value:
            raise ValueError(f"{source}: {gone} is {values[gone]!r}, which is gone (CHANGELOG.md); leave it out.")
    values = {key: value for key, value in values.items() if key not in RETIRED}
    refuse_unknown(values, origins(), source)
    data, views, model, run = (
        from_values(group, {name: value for name, value in values.items() if name in fields(group)}, source)
        for group in GROUPS
    )
    try:
        return Recipe(data, views, model, run, name)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def parse_command_line(arguments: Sequence[str] | None = None) -> Recipe:
    """The recipe a command line asks for: an optional YAML file first, then `--key value` overrides."""
    parser = CommandParser(
        prog="training/pretrain.py",
        usage="accelerate launch %(prog)s [RECIPE.yaml] [--key value …]",
        description="Pre-train with de-coupling and de-positioning. Every key of a recipe is a flag too.",
    )
    parser.add_argument("recipe", nargs="?", default=str(DEFAULT_RECIPE), help="recipe file (default: scenes_smoke)")
    add_flags(parser, *GROUPS, brief=BRIEF)
    parsed = parser.parse_args(arguments)
    try:
        return load_recipe(parsed.recipe, {name: v for group in GROUPS for name, v in given(parsed, group).items()})
    except (ValueError, FileNotFoundError) as error:
        parser.exit(2, f"{error}\n")
