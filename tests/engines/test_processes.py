"""Several processes attack side by side: the same bits, any number of them, and no silence where one is lost."""

import importlib
import multiprocessing
import pickle
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from hydra.types import RunMode
from omegaconf import OmegaConf

from robustcli.cli.launch import launch
from robustcli.engines.workers import spawnable, without_types

SMALL = ["dataset.train=16", "dataset.val=16", "dataset.test=24", "evaluation.limit=12", "evaluation.batch_size=3"]
WORDS = [*SMALL, "diagnostics=off", "evaluation.eps_curve=[]", "evaluation.resamples=20", "attack=sep"]


LONG = [*WORDS, "attack.image.steps=60"]
DEFENDED = [  # one adaptive attack on one purifier
    *("attacks=none", "+attack@attacks.pgd=pgd", "attacks.pgd.steps=10", "~baselines.noise", "~baselines.blur"),
    *("~baselines.jpeg", "purifier.draws=1", "evaluation.access=[adaptive]", "evaluation.fresh=1", "evaluation.eot=1"),
    *("evaluation.limit=10", "evaluation.batch_size=1", "evaluation.resamples=20", "diagnostics=off"),
]


def records(place: Path, *words: str, command: str = "attack", code: int = 0) -> pd.DataFrame | None:
    assert launch(command, [*words, f"hydra.run.dir={place}"]) == code
    return pd.read_parquet(place / "records.parquet") if code == 0 else None


def test_three_processes_leave_the_files_of_one(tmp_path: Path) -> None:
    alone = records(tmp_path / "one", *WORDS, "attack.image.steps=2")
    several = records(tmp_path / "three", *WORDS, "attack.image.steps=2", "processes=3")
    pd.testing.assert_frame_equal(alone, several, check_exact=True)
    stored = [sorted((tmp_path / name / "adversarial").iterdir()) for name in ("one", "three")]
    assert [path.name for path in stored[0]] == [path.name for path in stored[1]] and len(stored[0]) == 4
    assert all(first.read_bytes() == second.read_bytes() for first, second in zip(*stored, strict=True))


def test_the_node_of_hydra_goes_to_others_as_data() -> None:
    """The class of a launcher's node is not the one that Python finds by its name, where Hydra has loaded it anew."""
    importlib.import_module("robustcli.cli.job")  # which registers the resolver of ids
    node = type("LauncherConf", (), {"__annotations__": {"n_jobs": int}, "__module__": "hydra_plugins.nowhere"})
    config = OmegaConf.create(
        {"hydra": {"launcher": dataclass(node)(n_jobs=2), "dir": "${run_id:}", "mode": RunMode.RUN}}
    )
    assert config.hydra.dir == without_types(config).hydra.dir, "an id that was drawn stays"
    sent = pickle.loads(pickle.dumps(without_types(config)))
    assert sent.hydra.launcher.n_jobs == 2 and sent.hydra.mode is RunMode.RUN
    with pytest.raises((pickle.PicklingError, ModuleNotFoundError)):
        pickle.dumps(config)


def test_processes_start_in_a_worker_of_joblib_too() -> None:
    importlib.import_module("joblib")  # whose way of starting is the default in its workers
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("loky", force=True)
    try:
        with spawnable():
            process = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(0.0,))
            process.start()
        assert multiprocessing.get_start_method() == "loky"
    finally:
        multiprocessing.set_start_method(before, force=True)
    process.join()
    assert process.exitcode == 0


@pytest.mark.parametrize(("command", "words"), [("attack", LONG), ("purify", DEFENDED)], ids=["attack", "purify"])
def test_one_that_is_killed_ends_the_run_in_one_sentence_and_another_number_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, words: list[str]
) -> None:
    def kill() -> None:
        parts = tmp_path / "run" / "parts"
        while not any(parts.glob("*.parquet")):
            time.sleep(0.05)
        multiprocessing.active_children()[0].kill()

    threading.Thread(target=kill, daemon=True).start()
    records(tmp_path / "run", *words, "processes=2", command=command, code=1)
    said = capsys.readouterr().err
    assert "of 2 was lost (signal 9" in said and f"resume={tmp_path / 'run'}" in said
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "run" / "parts").iterdir()}
    assert kept
    assert launch(command, [f"resume={tmp_path / 'run'}", "processes=1"]) == 0
    alone = records(tmp_path / "alone", *words, command=command)
    pd.testing.assert_frame_equal(alone, pd.read_parquet(tmp_path / "run" / "records.parquet"), check_exact=True)
