"""Both sides of benchmarks/embed.py write the same features, or nothing counts."""

from pathlib import Path

import pyarrow
import pyarrow.parquet as parquet
import pytest

from benchmarks.embed import check_same, run_naive, run_ours, take


def test_both_sides_write_the_same(scenes: Path, tmp_path: Path):
    (file,) = (scenes / "data").glob("train*")
    data = str(take(file, 5, tmp_path / "five"))
    run_ours("random:resnet_tiny", data, tmp_path / "ours.parquet")
    run_naive("random:resnet_tiny", data, tmp_path / "naive.parquet")
    check_same(tmp_path / "ours.parquet", tmp_path / "naive.parquet")
    table = parquet.read_table(tmp_path / "naive.parquet")
    assert len(set(table["image_id"].to_pylist())) == 5
    values = table["feature"].to_pylist()
    values[3] = [1.01 * value for value in values[3]]
    parquet.write_table(pyarrow.table({"feature": values}), tmp_path / "other.parquet")
    with pytest.raises(RuntimeError, match="the features differ by"):
        check_same(tmp_path / "ours.parquet", tmp_path / "other.parquet")
