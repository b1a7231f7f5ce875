"""Exact pairs of drawn scenes as rows of the Parquet contract: a benchmark of the Hub, with its `eval.yaml`."""

import argparse
from functools import partial

import yaml

from modeling_decodepos.commands.settings import number
from modeling_decodepos.data.scenes import CLASS_NAMES, SCENES_VERSION, sample_scene
from modeling_decodepos.diagnosis.data.scene_pairs import FIRST_GALLERY, PAIR_ROLES, PAIRS_SPLIT, sample_probed
from modeling_decodepos.diagnosis.measures.metrics import BENCHMARK_TASKS, BY_KEY

from ..build.parquet import DatasetPlan, Row
from ..build.work_folder import WorkFolder
from .scenes import add_drawing_arguments, row_of

HELP = "exact pairs of procedural scenes, a benchmark of context and place: no download"
TITLE = "DecodePos exact pairs"
SUMMARY = (
    "How much of a vision backbone's region features is surroundings, and how much is place. Drawn objects, each in "
    "four pictures: as it is, in other surroundings, another object in its place, and the same object elsewhere."
)


def describe_tasks() -> str:
    """What each task asks, as a list."""
    return "\n".join(
        f"- `{metric.key}` ({metric.better} is better, protocol {metric.protocol}): {metric.title}. {metric.reading}"
        for metric in (BY_KEY[key] for key in BENCHMARK_TASKS)
    )


DESCRIPTION = f"""
{SUMMARY} Nothing is pasted: each picture is drawn, and the object's own pixels are the same in all that show it, but
for the rim, which blends in.

Split `{PAIRS_SPLIT}` has four rows per object, in this order, and an `image_id` that ends in {", ".join(PAIR_ROLES)}.
The probed object is the last of `objects`; its box as it is also counts where its surroundings or its content are
others. Split `train` has other scenes, which read-outs of a whole diagnosis may learn from; the tasks do not use it.
No picture is one of the data set `scenes`, whatever its seed.

## Tasks

{describe_tasks()}

Any vision backbone is scored on exactly these rows by

    decodepos diagnose MODEL --data FOLDER --measures context,position,same_object --output report \\
        --eval_results ORG/NAME

which also writes MODEL/.eval_results/NAME.yaml, where MODEL is a folder. Values are those of the last stage. Random
weights are a weak control: batch norms that saw no picture make them look worse than they are.
"""


def pair_row(split: str, number: int, seed: int, size_px: int) -> Row:
    """Row `number` of a split."""
    if split != PAIRS_SPLIT:
        return row_of(sample_scene(seed, FIRST_GALLERY + number, size_px), f"pairs-{seed}-{split}-{number:06d}")
    index, place = divmod(number, len(PAIR_ROLES))
    role = PAIR_ROLES[place]
    return row_of(sample_probed(seed, index, size_px).pictures()[role], f"pairs-{seed}-{index:06d}-{role}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of `prepare pairs`."""
    parser.add_argument("--pairs", type=number(int, 16, 1_000_000), default=512, help="probed objects, four rows each")
    parser.add_argument("--train", type=number(int, 2, 1_000_000), default=128, help="other scenes, for read-outs")
    add_drawing_arguments(parser, size_px=160, result="another benchmark")


def open_source(arguments: argparse.Namespace, work: WorkFolder) -> DatasetPlan:
    """What `prepare pairs` builds."""
    return pairs_source(arguments.pairs, arguments.train, arguments.size_px, arguments.seed)


def pairs_source(pairs: int = 512, train: int = 128, size_px: int = 160, seed: int = 0) -> DatasetPlan:
    """The data set of these settings, to be handed to `build_dataset`."""
    tasks = [{"id": key, "config": "default", "split": PAIRS_SPLIT} for key in BENCHMARK_TASKS]
    about = {"name": TITLE, "description": f"{SUMMARY}\n\n{describe_tasks()}\n", "tasks": tasks}
    return DatasetPlan(
        recipe={
            "source": "pairs", "scenes_version": SCENES_VERSION, "pairs": pairs, "train": train,
            "size_px": size_px, "seed": seed,
        },
        splits={PAIRS_SPLIT: len(PAIR_ROLES) * pairs, "train": train},
        class_names=CLASS_NAMES,
        make_row=partial(pair_row, seed=seed, size_px=size_px),
        title=TITLE,
        license="apache-2.0",
        description=DESCRIPTION,
        proposals="boxes",
        extra_files={"eval.yaml": yaml.safe_dump(about, sort_keys=False, allow_unicode=True, width=110)},
    )  # fmt: skip
