from pathlib import Path

import pytest
from accelerate import Accelerator

from tests.training.runs import Make
from training.building import build_run
from training.monitoring import write_json


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"mixed_share": 0.0}, ["mixed_share is 0", "'both'", "--objective decoupling"]),
        ({"backbone": "/no/such/folder"}, ["backbone", "/no/such/folder", "resnet18"]),
        ({"global_batch_size": 25}, ["global_batch_size is 25", "24 images", "at most 24"]),
        ({"accumulation_steps": 3}, ["8 is not divisible by 3", "take 6"]),
        ({"data": "/no/such/photos"}, ["data", "/no/such/photos"]),
    ],
)
def test_what_a_user_can_get_wrong_is_one_message(make_recipe: Make, tmp_path: Path, changes: dict, words: list[str]):
    with pytest.raises((ValueError, OSError)) as error:
        build_run(Accelerator(cpu=True), make_recipe(**changes), tmp_path)
    for word in words:
        assert word in str(error.value)


def test_a_folder_belongs_to_one_recipe_once_it_holds_a_checkpoint(make_recipe: Make, tmp_path: Path):
    write_json(tmp_path / "run.json", {"recipe": make_recipe().values()})
    other = make_recipe(cut_ratio_max=0.5)
    build_run(Accelerator(cpu=True), other, tmp_path)
    (tmp_path / "checkpoints/step_0000003").mkdir(parents=True)
    (tmp_path / "checkpoints/step_0000003/state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"cut_ratio_max: 0.4 there, 0.5 now"):
        build_run(Accelerator(cpu=True), other, tmp_path)
    (tmp_path / "run.json").write_bytes(b"")
    with pytest.raises(ValueError, match=r"run.json is damaged .*Delete that file"):
        build_run(Accelerator(cpu=True), other, tmp_path)
