"""A file is whole or absent, whatever happens while it is written."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from robustcli.utils import files

KILLED_BEFORE_RENAME = """
import os, signal, sys
from pathlib import Path
from robustcli.utils import files
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_text(Path(sys.argv[1]), "new" * 1000)
"""


def test_kill_between_write_and_rename_leaves_the_old_file_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.json"
    files.write_json(path, {"recall": 0.5})
    done = subprocess.run([sys.executable, "-c", KILLED_BEFORE_RENAME, str(path)], cwd=Path(__file__).parents[2])
    assert done.returncode == -signal.SIGKILL
    assert json.loads(path.read_text()) == {"recall": 0.5}
    assert len(list(tmp_path.iterdir())) == 2, "the kill should leave its temporary file"
    files.remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


def test_error_while_writing_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    with pytest.raises(RuntimeError, match="disk"), files.atomic(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("disk")
    assert list(tmp_path.iterdir()) == []


def test_bytes_reach_the_disk_before_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(os, "fsync", lambda handle: calls.append("sync"))
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (calls.append("rename"), replace(a, b)))
    files.write_text(tmp_path / "a.txt", "a")
    assert calls == ["sync", "rename", "sync"]


def test_json_refuses_what_it_does_not_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        files.write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
