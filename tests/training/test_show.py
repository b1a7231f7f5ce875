from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training import show


def test_the_command_draws_samples_of_a_plain_folder(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    (pictures / "a/00.png").write_bytes(b"no picture")
    output = tmp_path / "views.png"
    command = ["training.views", "--data", str(pictures), "--output", str(output)]
    monkeypatch.setattr("sys.argv", [*command, "--index", "0"])
    show.main()
    assert "image a/00.png cannot be decoded" in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.width > picture.height > 224
    for wrong, words in ((["--split", "validation"], "'train' only"), (["--index", "99"], "index is 99")):
        monkeypatch.setattr("sys.argv", [*command, *wrong])
        with pytest.raises(SystemExit):
            show.main()
        assert words in capsys.readouterr().err
