"""Config files of a user's own: what is no text, too large or too deep is a sentence, and soon."""

import os
from pathlib import Path

import pytest

from robustcli.cli.launch import launch
from robustcli.config.files import check_files
from robustcli.utils.errors import UserError

ROW = "a{}: &a{} [{}]\n"
BOMB = ROW.format(0, 0, "x,x,x,x") + "".join(ROW.format(n, n, ",".join([f"*a{n - 1}"] * 8)) for n in range(1, 12))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# \xe9t\xe9\nseed: 0\n", r"mine\.yaml is not UTF-8 text \(byte 2\): save it as UTF-8"),
        (BOMB.encode(), "entries once its aliases"),
        (b"a: &a\n  b: *a\n", "entries once its aliases"),
        (b"a: " + b"[" * 5000 + b"]" * 5000, "nested more deeply"),
        (b"a: [", "is no YAML"),
        (b"a: " + b"x" * 1_000_001, "expected a regular file of at most 1,000,000 bytes"),
    ],
)
def test_a_file_that_hydra_could_not_read_is_named(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_files(["--config-dir", str(tmp_path)])


def test_what_is_no_file_is_named_and_other_folders_are_left_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "x.yaml").write_bytes(b"\xff")
    (tmp_path / "dataset").mkdir()
    check_files(["--config-dir", str(tmp_path)])
    os.mkfifo(tmp_path / "dataset" / "mine.yaml")  # which would be read for ever
    assert launch("evaluate", ["--config-dir", str(tmp_path), "dataset=mine"]) == 2
    assert "mine.yaml is no config file" in capsys.readouterr().err
