from __future__ import annotations

import subprocess

from training import provenance


def test_written_results_do_not_mark_the_commit_and_code_does(tmp_path, monkeypatch):
    for name in ("training/provenance.py", "model_cards/results/a.json", "docs/a.md"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("first\n")
    for words in (
        ["init", "-q"],
        ["add", "-A"],
        ["-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first"],
    ):
        subprocess.run(["git", *words], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "training" / "provenance.py"))
    clean = provenance.commit()
    assert len(clean) == 40
    (tmp_path / "model_cards" / "results" / "a.json").write_text("second\n")
    (tmp_path / "docs" / "a.md").write_text("second\n")
    assert provenance.commit() == clean
    (tmp_path / "training" / "provenance.py").write_text("second\n")
    assert provenance.commit() == clean + "+changes"
