"""Where things are kept that can be made again."""

from pathlib import Path

import pytest

from robustcli.utils.cache import cache_directory
from robustcli.utils.errors import UserError


def test_the_own_variable_wins_over_the_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "own"))
    assert cache_directory("images") == tmp_path / "own" / "images"
    assert (tmp_path / "own" / "images").is_dir() and not (tmp_path / "xdg").exists()


@pytest.mark.skipif("sys.platform != 'linux'")
def test_without_it_the_cache_is_that_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCLI_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_directory("scenes") == tmp_path / "xdg" / "robustcli" / "scenes"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_directory() == tmp_path / ".cache" / "robustcli"


def test_a_cache_that_cannot_be_made_is_a_mistake_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match=r"file/scenes cannot be made \(Not a directory\): set .* ROBUSTCLI_CACHE"):
        cache_directory("scenes")
