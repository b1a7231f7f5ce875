from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from training.views.__main__ import main


def test_the_command_draws_samples_of_a_plain_folder(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    (pictures / "a/00.png").write_bytes(b"no picture")
    output = tmp_path / "views.png"
    command = ["--data", str(pictures), "--output", str(output)]
    main([*command, "--index", "0"])
    assert "image a/00.png cannot be decoded" in capsys.readouterr().out
    with Image.open(output) as picture:
        assert picture.width > picture.height > 224
    for wrong, words in ((["--split", "validation"], "'train' only"), (["--index", "99"], "index is 99")):
        with pytest.raises(SystemExit):
            main([*command, *wrong])
        assert words in capsys.readouterr().err
