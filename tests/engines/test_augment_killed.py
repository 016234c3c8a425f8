"""`robustcli augment` from the command line: killed and resumed, and refusals before any work."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from robustcli.cli.launch import launch

SMALL = ["augment=eda", "dataset.train=300", "dataset.val=8", "dataset.test=8", "shard=2", "batch_size=2"]


def shards(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((directory / "pairs").glob("*.parquet"))}


def test_killed_between_shards_and_resumed_ends_in_the_same_shards(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert launch("augment", [*SMALL, f"hydra.run.dir={whole}"]) == 0
    argv = [sys.executable, "-m", "robustcli", "augment", *SMALL, f"hydra.run.dir={cut}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(12000):
        if len(shards(cut)) >= 2 or process.poll() is not None:
            break
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = shards(cut)
    assert 2 <= len(left) < 150 and not (cut / "DONE").exists()
    assert launch("augment", [f"resume={cut}"]) == 0
    assert shards(cut) == shards(whole) and len(shards(whole)) == 150
    assert json.loads((cut / "metrics.json").read_text()) == json.loads((whole / "metrics.json").read_text())
    assert json.loads((cut / "manifest.json").read_text())["sessions"][0]["status"] == "killed"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["augment=llm"], "augment.model is null"),
        (["augment=captioner", "augment.temperature=0"], "augment.temperature is 0"),
        (["augment=synonyms", "augment.synonyms=absent.json"], "absent.json"),
        (["augment=randaugment", "augment.policy=none"], "augment.policy is 'none'"),
    ],
)
def test_a_mistake_ends_with_exit_code_2_before_any_work(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if "llm" in words[0]:
        pytest.importorskip("transformers")
    directory = tmp_path / "run"
    assert launch("augment", [*words, *SMALL[1:], f"hydra.run.dir={directory}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error
    assert not (directory / "pairs").exists()
