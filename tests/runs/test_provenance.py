"""What the manifest says of code and machine."""

import subprocess
from pathlib import Path

import pytest
import torch

from robustcli.runs import provenance


def test_package_ignored_by_a_foreign_git_tree_has_no_commit(tmp_path: Path) -> None:
    package = tmp_path / ".venv" / "robustcli"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "--allow-empty", "-m", "a"], check=True)
    assert provenance._git_state(package) == (None, None)
    subprocess.run(["git", "-C", str(tmp_path), "add", "."], check=True)
    commit, dirty = provenance._git_state(package)
    assert commit is not None and len(commit) == 40 and dirty is True
    subprocess.run(["git", "-C", str(tmp_path), *identity, "commit", "-q", "-m", "b"], check=True)
    assert provenance._git_state(package)[1] is False


def test_git_environment_of_a_hook_does_not_mislead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.setenv("GIT_DIR", str(Path(__file__).parents[2] / ".git"))
    assert provenance._git(tmp_path, "rev-parse", "--absolute-git-dir") == str(tmp_path.resolve() / ".git")


def test_source_hash_sees_content_and_names(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    first = provenance.source_hash(tmp_path)
    (tmp_path / "a.py").write_text("x = 2")
    second = provenance.source_hash(tmp_path)
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({first, second, provenance.source_hash(tmp_path)}) == 3


def test_packages_name_torch_and_mark_what_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package-here"))
    found = provenance.packages()
    assert found["torch"] and found["no-such-package-here"] is None and found["python"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_device_is_named_and_its_memory_counted_from_the_start_of_the_run() -> None:
    state = provenance.torch_state()
    assert state["cuda_device"] == torch.cuda.get_device_name() and state["cuda"] == torch.version.cuda
    block = torch.zeros(2**26, device="cuda")  # 256 MiB
    assert (provenance.peak_memory()["cuda_mib"] or 0) >= 256
    del block
    provenance.reset_peak_memory()
    assert (provenance.peak_memory()["cuda_mib"] or 0) < 256


def test_every_file_that_a_config_names_is_traced_by_its_content(tmp_path: Path) -> None:
    table, alphas = tmp_path / "table.json", tmp_path / "alphas.txt"
    table.write_text("{}")
    alphas.write_text("0.5")
    config = {
        "candidates": {"table": str(table), "top_k": 3},
        "attacks": {"words": {"constraints": [{"table": str(table)}, {"minimum": 0.8}]}},
        "purifier": {"alphas": str(alphas), "generator": "shipped", "checkpoint": False},
        "dataset": {"classes": str(table)},
        "resume": str(table),
        "checkpoint": "x" * 5000,
        "device": "",
    }
    before = provenance.input_files(config)
    assert set(before) == {"candidates.table", "attacks.words.constraints[0].table", "purifier.alphas"}
    table.write_text('{"a": []}')
    after = provenance.input_files(config)
    assert {key for key in before if before[key] != after[key]} == set(before) - {"purifier.alphas"}
