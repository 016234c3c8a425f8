"""From the command line to runs: exit codes, sentences for mistakes, resume, sweeps, signals; tiny engines."""

import contextlib
import csv
import errno
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from robustcli.cli.launch import guarded, launch
from robustcli.config import overrides
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import nearest_keys as nearest

# What the workers of another process get in place of the real engine: it does as `checkpoint` says.
ENGINE = """
import os, pathlib, sys, time, types
def run(config, run):
    with open(run.directory / "seen", "a") as file:
        file.write(f"{config.seed}\\n")
    if config.checkpoint == "fail" and config.seed == 1:
        raise ValueError("it broke\\nin two lines")
    if config.checkpoint == "die":
        os.kill(os.getpid(), 9)
    if config.checkpoint == "wait":
        (run.directory / "waiting").touch()
        time.sleep(60)
    if config.checkpoint == "stubborn":
        (run.directory / "waiting").touch()
        try:
            time.sleep(60)
        finally:
            (run.directory / "clearing up").touch()
            time.sleep(60)
    return float(config.seed) + 0.5
engine = types.ModuleType("robustcli.engines.train")
engine.run = run
sys.modules["robustcli.engines.train"] = engine
"""
SLUM = (  # the choices are those of what is installed
    "hydra/launcher has no choice 'submitit_slum': did you mean 'submitit_slurm'?"
    if find_spec("submitit")
    else "hydra/launcher=submitit_slum needs the cluster extra"
)
QUICK = ["attacks=none"]  # five attacks fewer to compose


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[Callable[..., float]], None]:
    """Puts a function in the place of an engine, for a test that works in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def install(work: Callable[..., float]) -> None:
        module: Any = ModuleType("robustcli.engines.train")
        module.run = work
        monkeypatch.setitem(sys.modules, "robustcli.engines.train", module)

    return install


def runs(root: Path = Path("outputs/train-mat")) -> list[Path]:
    return sorted(path.parent for path in root.rglob("manifest.json"))


def no_engine(config: Any, run: Any) -> float:
    raise AssertionError("the engine must not be reached")


def test_a_run_has_a_directory_with_what_it_was_asked_for(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine(lambda config, run: config.seed + 0.25)
    argv, environment = list(sys.argv), dict(os.environ)
    assert launch("train-mat", [*QUICK, "seed=7", "threat.eps=4/255"]) == 0
    assert (sys.argv, dict(os.environ)) == (argv, environment)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    (directory,) = runs()
    assert {path.name for path in directory.iterdir()} >= {"config.yaml", "overrides.yaml", "DONE", "log.txt"}
    assert "- seed=7" in (directory / "overrides.yaml").read_text()
    assert "eps: 4/255" in (directory / "config.yaml").read_text()
    assert json.loads((directory / "metrics.json").read_text())["objective"] == 7.25
    assert json.loads((directory / "manifest.json").read_text())["command"] == "train-mat"
    assert capfd.readouterr().err == ""


def test_what_is_built_after_a_run_in_the_same_process_is_of_no_job(
    engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    engine(lambda config, run: 0.0)
    with caplog.at_level(logging.DEBUG):  # at which Hydra shows the config first, and forgets to clean up
        assert launch("train-mat", QUICK) == 0
    assert not HydraConfig.initialized()


def test_two_runs_in_the_same_second_have_directories_of_their_own(engine: Any) -> None:
    engine(lambda config, run: 0.0)
    assert launch("train-mat", QUICK) == 0
    assert re.fullmatch(r"\d\d-\d\d-\d\d-[0-9a-f]{6}", runs()[0].name)
    within_a_second = [*QUICK, "hydra.run.dir=same/${run_id:}/${run_id:}"]
    assert [launch("train-mat", within_a_second) for _ in range(2)] == [0, 0]
    first, second = runs(Path("same"))
    assert first != second and first.name == first.parent.name


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["threat.epss=1"], "train-mat has no key 'threat.epss': did you mean 'threat.eps'?"),
        (["attack.image.eps=1"], "attack.image.eps: what an attack may change is the threat model"),
        (["attack.eps=1"], "set threat.eps"),
        (["attacks.sep.text.max_words=2", "attacks=quick"], "set threat.words"),
        (["datset=scenes"], "train-mat has no key 'datset': did you mean 'dataset'?"),
        (["dataset=scene"], "dataset has no choice 'scene': did you mean 'scenes'? (choices: caltech101, "),
        (["dataset=table", "dataset.caption_colum=a"], "did you mean 'dataset.caption_column'?"),
        (["trainer.max_steps=abc"], "trainer.max_steps is 'abc', but must be a whole number\n"),
        (["trainer.batch_size=0"], "trainer.batch_size is 0, but must be at least 1"),
        (["seed=0,1"], "seed=0,1 lists several values: add --multirun for a job each, or write seed=[0,1] for a list"),
        (["seed=[0"], "'seed=[0' cannot be read: write KEY=VALUE"),
        (["checkpoint=run(1).pt"], """around what has ( ) in it, "checkpoint='run(1).pt'\""""),
        (["checkpoint=modèle.pt"], """around what has è in it, "checkpoint='modèle.pt'\""""),
        (["checkpoint=$a=b.pt"], """around what has = in it, 'checkpoint='"'"'$a=b.pt'"'"''"""),
        (["dataset.classes=[a=b,c]"], """around what has = in it, "dataset.classes=['a=b',c]\""""),
        (["mat"], "'mat' has no value: did you mean attack=mat or defense=mat?"),
        (["--multirum"], "unknown flag '--multirum': did you mean '--multirun'?"),
        (["--cfg", "jop"], "--cfg cannot be 'jop': did you mean 'job'?"),
        (["--cfg"], "--cfg needs a value"),
        (["--resolve"], "--resolve needs --cfg job"),
        (["--multirun", "--cfg", "job"], "--cfg and --multirun exclude each other"),
        (["hydra/launcher=jobli"], "hydra/launcher has no choice 'jobli': did you mean 'joblib'?"),
        (["hydra/launcher=submitit_slum"], SLUM),
        (["--config-dir", "nowhere"], "--config-dir nowhere is no directory: give one with config groups"),
        (["--config-dir=nowhere", "dataset=mine"], "--config-dir nowhere is no directory"),
        (["--config-path", "nowhere"], "to add your own, give --config-dir"),
        (["--config-name", "mine"], "Cannot find primary config 'mine'. "),
        (["+evaluation.limt=4"], "nothing would read evaluation.limt: did you mean 'limit'?"),
        (["+threat.k=1"], "nothing would read threat.k (keys there: norm, eps, "),
        (["+limit=4"], "nothing would read limit"),
        (["seed=abc"], "seed is 'abc', but must be a whole number\n"),
        (["seed=1.5"], "seed is 1.5, but must be a whole number\n"),
        (["seed=null"], "seed is null, but needs a value\n"),
        (["trainer.lr=high"], "trainer.lr is 'high', but must be a number\n"),
        (["trainer.compile=maybe"], "trainer.compile is 'maybe', but must be true or false\n"),
        (["evaluation.eps_curve=2"], "evaluation.eps_curve is 2, but must be a list, such as [1, 2]\n"),
        (["threat.norm=[l2]"], "threat.norm is [l2], but must be a text\n"),
        (["trainer=3"], "trainer has no choice 3 (choices: default, "),
        (["trainer=inf"], "trainer has no choice inf (choices: default, "),
        (["dataset=[scenes]"], "dataset has no choice [scenes] (choices: caltech101, "),
        (
            ["objective=0.5"],
            "objective=0.5: train-mat has no group 'objective'; of a node set the keys, objective.KEY=",
        ),
        (["threads=${nowhere}"], "the config cannot be resolved: Interpolation key 'nowhere' not found"),
        (["resume=nowhere"], "resume=nowhere: the directory does not exist"),
        (["resume=."], "resume=.: the directory holds neither a run nor a sweep"),
        (["dataset=karpathy"], "dataset.annotations has no value"),
        (["trainer.device=cpu"], "train-mat has no key 'trainer.device': did you mean 'trainer.devices' or 'device'?"),
        (["trainer.threads=2"], "train-mat has no key 'trainer.threads': did you mean 'threads'?"),
        (["protocol=smoke"], "protocol=smoke: train-mat has no group 'protocol'; purify has it."),
        (["protocol.fresh=2"], "train-mat has no key 'protocol.fresh', because it has no group 'protocol'; purify has"),
        (["dataset=null"], "dataset=null: a group takes the name of a choice (caltech101, "),
        (["zzz=1"], "train-mat has no key 'zzz': `robustcli train-mat --cfg job` prints those that it has"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_mistake_is_one_sentence_and_leaves_nothing(
    engine: Any, capfd: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    engine(no_engine)
    assert launch("train-mat", [*QUICK, *words]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1, err
    assert out == "" and not Path("outputs").exists()


@pytest.mark.parametrize(
    ("command", "word", "sentence"),
    [
        ("evaluate", "trainer=smoke", "no group 'trainer'; train-mat, train-classifier and train-generator have it."),
        ("train-generator", "objective=trades", "no group 'objective'; train-classifier has it."),
        ("purify", "attack=pgd", "no group 'attack'; train-mat, train-classifier, attack and evaluate have it."),
    ],
)
def test_another_command_s_group_is_said_to_be_its_own(
    capfd: pytest.CaptureFixture[str], command: str, word: str, sentence: str
) -> None:
    assert launch(command, [word]) == 2
    assert capfd.readouterr().err == f"error: {word}: {command} has {sentence}\n"


def test_a_short_form_is_recorded_in_full(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overrides, "SHORT_FORMS", {"eps": "threat.eps"})
    engine(lambda config, run: 0.0)
    assert launch("train-mat", [*QUICK, "eps=2/255"]) == 0
    (directory,) = runs()
    assert "- threat.eps=2/255" in (directory / "overrides.yaml").read_text()
    assert "eps: 2/255" in (directory / "config.yaml").read_text()


def test_the_nearest_key_is_one_of_the_same_group() -> None:
    valid = ["threat.eps", "attacks.sga.image.alpha", "attacks.pgd.steps", "evaluation.eps_curve"]
    assert nearest("threat.epps", valid) == ["threat.eps"]
    assert nearest("attacks.sg.image.alpha", valid) == ["attacks.sga.image.alpha"]
    assert nearest("colour", valid) == []


def test_a_mistake_that_an_engine_finds_is_one_sentence_too(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def wrapped(config: Any, run: Any) -> float:
        try:
            raise UserError("threat.eps is 4: did you mean 4/255?")
        except UserError as error:  # as hydra.utils.instantiate does with what a constructor raises
            raise RuntimeError("Error in call to target") from error

    engine(wrapped)
    assert launch("train-mat", QUICK) == 2
    assert capfd.readouterr().err == "error: threat.eps is 4: did you mean 4/255?\n"


def mistaken(config: Any, run: Any) -> float:
    with run.phase("load"):
        raise UserError("threat.eps is 4: did you mean 4/255?")


@pytest.mark.parametrize("place", [None, "a/b/c"])
def test_a_mistake_before_work_leaves_nothing(engine: Any, tmp_path: Path, place: str | None) -> None:
    engine(mistaken)
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "kept").touch()
    assert launch("train-mat", [*QUICK, *([f"hydra.run.dir={place}"] if place else [])]) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "kept"]


def test_a_mistake_after_work_has_begun_and_one_of_a_resumed_run_leave_it(engine: Any) -> None:
    def late(config: Any, run: Any) -> float:
        with run.phase("judge"):
            return mistaken(config, run)

    engine(late)
    assert launch("train-mat", [*QUICK, "hydra.run.dir=late"]) == 2
    assert "did you mean" in Path("late/FAILED").read_text()

    def stopped(config: Any, run: Any) -> float:
        raise KeyboardInterrupt

    engine(stopped)
    assert launch("train-mat", [*QUICK, "hydra.run.dir=begun"]) == 130
    engine(mistaken)
    assert launch("train-mat", ["resume=begun"]) == 2
    assert Path("begun/FAILED").is_file() and Path("begun/config.yaml").is_file()


def test_a_mistake_in_a_job_of_a_sweep_stands_in_its_table(engine: Any) -> None:
    engine(mistaken)
    assert launch("train-mat", [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]) == 1
    assert "did you mean" in Path("sweep/1/FAILED").read_text() and Path("sweep/sweep.csv").is_file()


@pytest.mark.parametrize("words", [["hydra.run.dir=file/x"], ["--multirun", "seed=0,1", "hydra.sweep.dir=file/x"]])
def test_a_directory_that_cannot_be_made_is_one_sentence(
    engine: Any, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    engine(no_engine)
    Path("file").touch()
    assert launch("train-mat", [*QUICK, *words]) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: the directory of the run cannot be made: ") and "file" in err
    assert err.count("\n") == 1 and "(Not a directory)" in err and "hydra.run.dir" in err


def test_a_failure_is_one_line_with_the_place_of_its_traceback(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def broken(config: Any, run: Any) -> float:
        raise ValueError("first line\nsecond line")

    engine(broken)
    assert launch("train-mat", QUICK) == 1
    (directory,) = runs()
    assert capfd.readouterr().err == f"error: ValueError: first line (traceback in {directory.absolute()}/FAILED)\n"
    assert "in broken" in (directory / "FAILED").read_text()


def test_ctrl_c_is_130(engine: Any) -> None:
    def stopped(config: Any, run: Any) -> float:
        raise KeyboardInterrupt

    engine(stopped)
    assert launch("train-mat", QUICK) == 130
    (directory,) = runs()
    assert not (directory / "DONE").exists() and not (directory / "FAILED").exists()


def test_resume_goes_on_in_the_same_directory_with_the_same_words(engine: Any) -> None:
    seen: list[tuple[int, float, Path]] = []

    def stops_once(config: Any, run: Any) -> float:
        seen.append((config.seed, config.trainer.lr, run.directory))
        if len(seen) == 1:
            raise KeyboardInterrupt
        return 1.0

    engine(stops_once)
    assert launch("train-mat", [*QUICK, "seed=5", "trainer.lr=0.25", "defense=clean"]) == 130
    (directory,) = runs()
    assert launch("train-mat", [f"resume={directory}", "defense=clean"]) == 0
    assert seen[0] == seen[1] == (5, 0.25, directory.absolute()) and runs() == [directory]
    assert launch("train-mat", [f"resume={directory}"]) == 0 and len(seen) == 2  # done: nothing is run again
    assert launch("train-mat", [f"resume={directory}", "seed=6"]) == 2  # another config is another run


def test_the_whole_command_line_goes_on_with_resume(engine: Any) -> None:
    engine(lambda config, run: 0.0)
    words = [*QUICK, "+attack@attacks.extra=pgd", "threat.eps=4/255"]
    assert launch("train-mat", [*words, "hydra.run.dir=run"]) == 0
    assert launch("train-mat", [*words, "resume=run"]) == 0


def test_resume_takes_a_directory_whose_name_needs_quotes(engine: Any, tmp_path: Path) -> None:
    place = tmp_path / "a 'b', {c}=d"
    engine(lambda config, run: 1.0)
    assert launch("train-mat", [*QUICK, 'hydra.run.dir="' + str(place) + '"']) == 0
    (place / "DONE").unlink()
    assert launch("train-mat", [f"resume={place}"]) == 0
    assert (place / "DONE").exists()


def test_a_sweep_goes_on_after_a_failed_job_and_ends_with_1(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []

    def one_breaks(config: Any, run: Any) -> float:
        seen.append(config.seed)
        if config.seed == 1 and len(seen) < 4:
            raise ValueError("it broke")
        return float(config.seed)

    engine(one_breaks)
    words = [*QUICK, "--multirun", "seed=0,1,2", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 1
    out, err = capfd.readouterr()
    assert seen == [0, 1, 2] and err.count("\n") == 2
    assert "error: job 1: ValueError: it broke (traceback in " in err and "error: job 1 of the sweep failed" in err
    with open("sweep/sweep.csv", newline="") as file:
        statuses = [row["status"] for row in csv.DictReader(file)]
    assert statuses == ["done", "failed", "done"] and "failed" in out
    (Path("sweep/2") / "DONE").unlink()
    for again in (words, ["resume=sweep"]):  # what is not done goes on, what failed stays as it is, and is told
        assert launch("train-mat", again) == 1 and seen == [0, 1, 2, 2], "only what is neither done nor failed"
        err = capfd.readouterr().err
        assert err.startswith("error: job 1 of the sweep failed; see FAILED in") and err.count("\n") == 1
        assert err.endswith("sweep retry=failed\n"), "with the words that do it again"
    assert launch("train-mat", ["resume=sweep", "retry=failed"]) == 0 and seen == [0, 1, 2, 2, 1]
    assert "retry=" not in Path("sweep/1/overrides.yaml").read_text() + Path("sweep/multirun.yaml").read_text()
    assert launch("train-mat", ["resume=sweep"]) == 0 and len(seen) == 5


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["retry=all", "resume=run"], "retry is 'all', but must be failed"),
        (["retry=failed"], "retry=failed is for the jobs of a sweep: name it with resume=DIR"),
        (["retry=failed", "resume=run"], "run is no sweep but a run, which goes on, or is done again, by resume=run"),
    ],
)
def test_retry_is_for_the_failed_jobs_of_a_sweep(
    engine: Any, capfd: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    engine(lambda config, run: 0.0)
    assert launch("train-mat", [*QUICK, "hydra.run.dir=run"]) == 0
    capfd.readouterr()
    assert launch("train-mat", words) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: ") and sentence in err and err.count("\n") == 1


def test_a_failed_job_of_other_words_is_another_job(engine: Any) -> None:
    """What was refused, or failed without results, is no reason to leave a mended command line undone."""
    engine(mistaken)
    words = [*QUICK, "--multirun", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", [*words, "seed=0,1", "threat.eps=4"]) == 1
    engine(lambda config, run: 0.0)
    assert launch("train-mat", [*words, "seed=0,1", "threat.eps=4/255"]) == 0


@pytest.mark.parametrize(
    "launcher", [[], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]], ids=["basic", "joblib"]
)
def test_a_sweep_that_was_stopped_goes_on_where_it_was(start: Any, tmp_path: Path, launcher: list[str]) -> None:
    words = ("--multirun", "seed=0,1,2", "hydra.sweep.dir=sweep", *launcher)
    process = start(*words, "checkpoint=wait")
    wait_for((tmp_path / "sweep" / "0" / "waiting").exists, process)
    table = subprocess.run([sys.executable, "-m", "robustcli", "report", "sweep"], cwd=tmp_path, capture_output=True)
    told = table.stdout.decode()
    assert table.returncode == 0, table.stderr
    assert (f"3 jobs: {1 + bool(launcher)} running, {2 - bool(launcher)} waiting") in told, told
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143 and "go on with: robustcli train-mat resume=sweep" in err
    (tmp_path / "sitecustomize.py").write_text(ENGINE.replace("time.sleep(60)", "pass"))
    process = start("resume=sweep")
    assert process.wait(120) == 0, process.communicate()
    process.communicate()
    jobs = [tmp_path / "sweep" / f"{number}" for number in range(3)]
    assert all((job / "DONE").exists() for job in jobs)
    assert [(job / "seen").read_text().split() for job in jobs[:1]] == [["0", "0"]]


def test_a_sweep_of_another_version_is_refused_as_a_whole(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    seen: list[int] = []
    engine(lambda config, run: seen.append(config.seed) or 0.0)
    words = [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 0
    (Path("sweep/0/DONE")).unlink()
    manifest = Path("sweep/1/manifest.json")
    old = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(old | {"code": old["code"] | {"version": "0.0.9"}}))
    capfd.readouterr()
    assert launch("train-mat", ["resume=sweep"]) == 2 and seen == [0, 1], "before its first job"
    err = capfd.readouterr().err
    assert "was begun by robustcli 0.0.9, and this is " in err and "pip install robustcli==0.0.9" in err
    assert err.count("\n") == 1


def test_a_job_that_goes_on_has_the_number_that_it_had(engine: Any) -> None:
    """A setting may refer to it, and would be another one."""
    seen: list[int] = []
    engine(lambda config, run: seen.append(config.seed) or 0.0)
    words = [*QUICK, "--multirun", "threat.eps=1/255,2/255,3/255", "seed=${hydra:job.num}", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 0 and seen == [0, 1, 2]
    shutil.rmtree("sweep/1")
    (Path("sweep") / "2" / "DONE").unlink()
    assert launch("train-mat", ["resume=sweep"]) == 0 and seen[3:] == [1, 2]


@pytest.mark.parametrize("word", ["seed=${hydra:job.num}", "seed='${hydra:job.num}'"], ids=["bare", "quoted"])
def test_a_job_records_the_value_of_what_refers_to_its_number(engine: Any, word: str) -> None:
    """Else its table would tell the words of all jobs alike, and the job could neither go on alone nor be rebuilt."""
    engine(lambda config, run: float(config.seed))
    words = [*QUICK, "--multirun", "threat.eps=1/255,2/255", word, "+defense.tags=[a,'b-${seed}']"]
    assert launch("train-mat", [*words, "hydra.sweep.dir=sweep"]) == 0
    jobs = json.loads(Path("sweep/jobs.json").read_text())
    assert [job["overrides"][-2:] for job in jobs] == [
        [f"seed={number}", f"+defense.tags=['a', 'b-{number}']"] for number in (0, 1)
    ]
    assert pd.read_csv("sweep/sweep.csv")["seed"].tolist() == [0, 1]
    Path("sweep/1/DONE").unlink()
    assert launch("train-mat", ["resume=sweep/1"]) == 0


def test_a_group_that_refers_to_something_is_recorded_by_its_choice(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its node is no word of the command line."""
    engine(lambda config, run: 0.0)
    monkeypatch.setenv("DEFENSE", "image")
    words = [*QUICK, "defense=${oc.env:DEFENSE}", "+attack@attacks.pgd='${oc.env:ATTACK,pgd}'"]
    assert launch("train-mat", [*words, "hydra.run.dir=run"]) == 0
    assert OmegaConf.to_container(OmegaConf.load("run/overrides.yaml"), resolve=False)[1:] == [
        "defense=image",
        "+attack@attacks.pgd=pgd",
    ]
    monkeypatch.delenv("DEFENSE")
    Path("run/DONE").unlink()
    assert launch("train-mat", ["resume=run"]) == 0


def test_a_job_that_was_refused_has_the_values_of_its_words(engine: Any) -> None:
    engine(no_engine)
    words = [*QUICK, "--multirun", "seed=3,4", "threat.eps='${seed}'", "checkpoint='${nowhere}'"]
    assert launch("train-mat", [*words, "hydra.sweep.dir=sweep"]) == 1
    table = pd.read_csv("sweep/sweep.csv")
    assert (table["threat.eps"].tolist(), set(table["checkpoint"])) == ([3, 4], {"${nowhere}"})


def test_jobs_that_are_skipped_leave_the_others_their_directories(engine: Any) -> None:
    """A launcher numbers the jobs that it gets, whatever their place in the sweep is."""
    seen: list[int] = []
    engine(lambda config, run: seen.append(config.seed) or float(config.seed))
    assert launch("train-mat", [*QUICK, "--multirun", "seed=5,6,7,8", "hydra.sweep.dir=sweep"]) == 0
    for number in (1, 3):
        (Path("sweep") / f"{number}" / "DONE").unlink()
    assert launch("train-mat", ["resume=sweep"]) == 0 and seen[4:] == [6, 8]
    with open("sweep/sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["seed"], row["status"]) for row in rows] == [(f"{seed}", "done") for seed in (5, 6, 7, 8)]
    assert sorted(path.name for path in Path("sweep").iterdir() if path.is_dir()) == ["0", "1", "2", "3"]
    assert "subdir" not in Path("sweep/1/overrides.yaml").read_text()


def test_the_figure_of_a_job_reaches_the_sweeper(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from robustcli.report.sweep import SweepTable

    figures: list[float] = []
    monkeypatch.setattr(
        SweepTable, "on_job_end", lambda self, config, job_return, **_: figures.append(job_return.return_value)
    )
    engine(lambda config, run: config.seed * 2.0)
    assert launch("train-mat", [*QUICK, "--multirun", "seed=3,4"]) == 0
    assert figures == [6.0, 8.0]


def test_a_sweep_without_a_job_is_a_mistake(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine(no_engine)
    words = [*QUICK, "--multirun", "seed=glob(7*)", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 2
    err = capfd.readouterr().err
    assert err.startswith("error: the sweep has no job: ") and err.count("\n") == 1


def test_outcomes_are_counted_and_not_read_off_directories(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    engine(lambda config, run: 0.0)
    words = [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 0
    Path("sweep/9").mkdir()
    Path("sweep/9/FAILED").write_text("of an earlier sweep")
    assert launch("train-mat", words) == 0, "an old marker is no failed job"
    whole = BasicLauncher.launch
    monkeypatch.setattr(BasicLauncher, "launch", lambda *arguments, **settings: whole(*arguments, **settings)[:1])
    words[-1] = "hydra.sweep.dir=another"
    assert launch("train-mat", words) == 1, "a job without a result is not a success"


def test_a_job_that_submitit_lost_does_not_cost_the_table(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its launcher raises for the first job without a result, whatever became of the others."""
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher

    whole, lost = BasicLauncher.launch, type("UncompletedJobError", (RuntimeError,), {"__module__": "submitit.core"})

    def launch_some(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        whole(self, job_overrides[1:], initial_job_idx + 1)
        raise lost("Job 12_0 (task: 0) has not produced any output (state: FAILED)")

    engine(lambda config, run: float(config.seed))
    with monkeypatch.context() as patch:
        patch.setattr(BasicLauncher, "launch", launch_some)
        assert launch("train-mat", [*QUICK, "--multirun", "seed=0,1,2", "hydra.sweep.dir=sweep"]) == 1
    out, err = capfd.readouterr()
    assert "3 jobs: 2 done, 1 waiting" in out and err.count("\n") == 1
    assert err.startswith("error: job 0 of the sweep ended without a result; go on with: robustcli train-mat resume=")
    assert launch("train-mat", ["resume=sweep"]) == 0


def test_what_a_launcher_hands_back_as_an_error_is_told(
    engine: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from hydra._internal.core_plugins.basic_launcher import BasicLauncher
    from hydra.core.utils import JobReturn, JobStatus

    def launch_none(self: Any, job_overrides: Any, initial_job_idx: int) -> Any:
        result = JobReturn()
        result.status, result.return_value = JobStatus.FAILED, UserError("it was not put back into the queue of Slurm")
        Path("sweep/.submitit").mkdir(parents=True)
        return [result]

    engine(no_engine)
    monkeypatch.setattr(BasicLauncher, "launch", launch_none)
    assert launch("train-mat", [*QUICK, "--multirun", "seed=0", "hydra.sweep.dir=sweep"]) == 1
    first, second = capfd.readouterr().err.splitlines()
    assert first == "error: job 0: it was not put back into the queue of Slurm"
    assert "(what Slurm said stands in sweep/.submitit)" in second


def test_cfg_job_prints_the_config_and_makes_no_run(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    engine(no_engine)
    assert launch("train-mat", ["--cfg", "job", "seed=9", "-p", "trainer"]) == 0
    assert "max_steps:" in capfd.readouterr().out and not Path("outputs").exists()
    assert launch("evaluate", ["--info", "defaults"]) == 0
    assert "attacks/standard" in capfd.readouterr().out


def test_a_job_can_be_pickled_for_other_processes() -> None:
    from robustcli.cli.job import Job

    assert pickle.loads(pickle.dumps(Job("train-mat"))).command == "train-mat"


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """Starts ``robustcli train-mat`` with the engine above, which its workers get too."""
    (tmp_path / "sitecustomize.py").write_text(ENGINE)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])

    def popen(*words: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "robustcli", "train-mat", *QUICK, *words],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests themselves run in the background of a shell, Ctrl-C is ignored, and children inherit that.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    return popen


def wait_for(done: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not done():
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_signals_end_a_run_in_order(start: Any, tmp_path: Path, number: signal.Signals) -> None:
    process = start("checkpoint=wait", "hydra.run.dir=run")
    wait_for((tmp_path / "run" / "waiting").exists, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 128 + number and "Traceback" not in err
    assert f"go on with: robustcli train-mat resume={tmp_path / 'run'}\n" in err
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["status"] == "interrupted" and not (tmp_path / "run" / "FAILED").exists()


def test_a_second_ctrl_c_quits_at_once(start: Any, tmp_path: Path) -> None:
    process = start("checkpoint=stubborn", "hydra.run.dir=run")
    wait_for((tmp_path / "run" / "waiting").exists, process)
    process.send_signal(signal.SIGINT)
    wait_for((tmp_path / "run" / "clearing up").exists, process)
    process.send_signal(signal.SIGINT)  # the same one, passed on by a program around it
    time.sleep(0.6)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 130 and err.endswith("stopped at once by a second Ctrl-C\n") and "Traceback" not in err
    assert not (tmp_path / "run" / "FAILED").exists()


def test_joblib_runs_jobs_side_by_side_and_survives_a_failed_one(start: Any, tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "checkpoint=fail")
    process = start("--multirun", "seed=0,1,2", *words)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err, err
    (sweep,) = (path.parent for path in tmp_path.rglob("sweep.csv"))
    assert sweep.parent.parent == tmp_path / "outputs" / "train-mat"  # one directory, though two processes worked
    assert [(sweep / f"{job}" / "DONE").exists() for job in range(3)] == [True, False, True]
    assert "it broke" in (sweep / "1" / "FAILED").read_text()
    assert [(sweep / f"{job}" / "seen").read_text() for job in range(3)] == ["0\n", "1\n", "2\n"]


def test_broken_yaml_of_the_user_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("a: 1\na: [2\n")
    assert launch("evaluate", ["--config-dir", str(tmp_path), "dataset=mine"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {tmp_path / 'dataset' / 'mine.yaml'} is no YAML: ") and len(said.splitlines()) == 1


def test_a_signal_that_meets_an_import_waits_for_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that catches everything would lose it, as optional imports of libraries do."""
    module = """
import os, signal
done = "lost"
try:
    os.kill(os.getpid(), signal.SIGTERM)
    sum(range(3_000_000))
    done = "whole"
except BaseException:
    pass
"""
    (tmp_path / "greedy.py").write_text(module)
    monkeypatch.syspath_prepend(tmp_path)
    seen: list[str] = []

    def work() -> int:
        import greedy  # type: ignore[import-not-found]

        seen.append(greedy.done)
        for _ in range(10**9):
            pass
        return 0

    assert guarded(work) == 143 and seen == ["whole"]


def test_an_error_that_a_library_makes_of_a_signal_is_a_stop(capsys: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise ImportError("cannot import name 'x'")  # noqa: B904 (as libraries do)

    assert guarded(work) == 130 and capsys.readouterr().err == "stopped by Ctrl-C\n"


def test_a_sweep_whose_markers_cannot_be_written_fails(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "FAILED")

    engine(lambda config, run: 0.0)
    monkeypatch.setattr("robustcli.cli.job.record_refusal", full)
    monkeypatch.setattr("robustcli.runs.run.begin_run", full)
    assert launch("train-mat", [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]) == 1


def test_a_sweep_claims_its_directory(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    words = [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]
    Path("sweep").mkdir()
    Path("sweep/mine").write_text("mine")
    engine(no_engine)
    assert launch("train-mat", words) == 2 and [path.name for path in Path("sweep").iterdir()] == ["mine"]
    Path("sweep/mine").unlink()
    codes: list[int] = []

    def again(config: Any, run: Any) -> float:
        script = f"import sys; from robustcli.cli.launch import launch; sys.exit(launch('train-mat', {words}))"
        codes.append(subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode)
        return 0.0

    engine(again)
    assert launch("train-mat", words) == 0 and codes == [2, 2]
    Path("sweep/link").symlink_to("elsewhere")
    assert launch("train-mat", words) == 2
    assert "link is a link" in capfd.readouterr().err


def test_a_killed_worker_of_a_sweep_is_one_sentence(start: Any, tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "checkpoint=die", "hydra.sweep.dir=sweep")
    process = start("--multirun", "seed=0,1", *words)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1 and "Traceback" not in err, err
    assert "error: a worker of the sweep was killed" in err and "resume=sweep hydra.launcher.n_jobs=1" in err
    (tmp_path / "sitecustomize.py").write_text(ENGINE.replace("os.kill", "(lambda *_: None)"))
    process = start("resume=sweep", "hydra.launcher.n_jobs=1")
    assert process.wait(120) == 0, process.communicate()
    assert [(tmp_path / "sweep" / f"{job}" / "DONE").is_file() for job in range(2)] == [True, True]


def test_workers_of_a_killed_sweep_end_and_give_its_directories_back(start: Any, tmp_path: Path) -> None:
    words = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "checkpoint=wait", "hydra.sweep.dir=sweep")
    process, jobs = start("--multirun", "seed=0,1", *words), [tmp_path / "sweep" / f"{job}" for job in range(2)]
    wait_for(lambda: all((job / "waiting").exists() for job in jobs), process)
    process.kill()
    for job in jobs:
        FileLock(job / ".lock").acquire(timeout=20)  # of the 60 s that the jobs would wait
    process.communicate()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 3 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.mark.skipif(shutil.which("mount") is None, reason="there is no mount")
@pytest.mark.parametrize("left", [0, 8192], ids="{} bytes left".format)
@pytest.mark.parametrize("mode", [["hydra.run.dir=disk/run"], ["--multirun", "seed=0,1", "hydra.sweep.dir=disk/run"]])
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    engine: Any, capfd: pytest.CaptureFixture[str], small_disk: Path, mode: list[str], left: int
) -> None:
    ballast = small_disk / "ballast"

    def filled(config: Any, run: Any) -> float:
        with ballast.open("ab") as file:
            file.write(bytes(max(0, shutil.disk_usage(small_disk).free - left)))
        run.records_part("one", lambda: pd.DataFrame({"a": np.random.default_rng(0).random(10_000)}))
        return 0.0

    engine(filled)
    assert launch("train-mat", [*QUICK, *mode]) == 1
    err = capfd.readouterr().err.splitlines()
    assert err and all(line.startswith("error: ") for line in err), err
    assert any("has no room left" in line and "make room there" in line for line in err), err
    assert launch("train-mat", [*QUICK, *mode]) in (1, 2), "there is no room yet"
    err = capfd.readouterr().err.splitlines()
    assert err and all(line.startswith("error: ") for line in err), err
    ballast.unlink()
    engine(lambda config, run: 0.0)
    assert launch("train-mat", ["resume=disk/run", *(["retry=failed"] if "--multirun" in mode else [])]) == 0
    assert len(list(small_disk.rglob("DONE"))) == 1 + ("--multirun" in mode)
    assert not list(small_disk.rglob(".tmp-*"))


@pytest.mark.parametrize("words", [["seed=0,5"], ["resume=sweep", "trainer.lr=0.5"]])
def test_a_sweep_of_another_config_is_refused_before_its_first_job(
    engine: Any, capfd: pytest.CaptureFixture[str], words: list[str]
) -> None:
    seen: list[int] = []

    def count(config: Any, run: Any) -> float:
        seen.append(config.seed)
        return 0.0

    engine(count)
    sweep = [*QUICK, "--multirun", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", [*sweep, "seed=0,1"]) == 0
    record = Path("sweep/multirun.yaml").read_text()
    capfd.readouterr()
    assert launch("train-mat", words if "resume=sweep" in words else [*sweep, *words]) == 2
    out, err = capfd.readouterr()
    assert err.startswith("error: job ") and err.count("\n") == 1 and "holds a run of another config" in err, err
    assert seen == [0, 1] and Path("sweep/multirun.yaml").read_text() == record and out == ""
    assert launch("train-mat", [*sweep, "seed=0,1,2"]) == 0 and seen == [0, 1, 2], "more jobs of the same are the same"


def test_the_record_of_a_sweep_is_whole_whatever_happens_while_it_is_written(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine(lambda config, run: 0.0)
    words = [*QUICK, "--multirun", "seed=0,1", "hydra.sweep.dir=sweep"]
    assert launch("train-mat", words) == 0
    record, save = Path("sweep/multirun.yaml").read_text(), OmegaConf.save

    def full(config: Any, f: Any, resolve: bool = False) -> None:
        Path(f).write_text("")
        raise OSError(errno.ENOSPC, "No space left on device", str(f))

    with monkeypatch.context() as patch:
        patch.setattr(OmegaConf, "save", staticmethod(full))
        assert launch("train-mat", words) == 2
    assert Path("sweep/multirun.yaml").read_text() == record and OmegaConf.save is save
    Path("sweep/.tmp-robustcli-1-00000000-sweep.csv").write_text("of a killed sweep")
    assert launch("train-mat", ["resume=sweep"]) == 0 and not list(Path("sweep").glob(".tmp-*"))


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_a_config_that_is_not_utf_8_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], encoding: str
) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("# Für mich.\n_target_: robustcli.data.Digits\n", encoding=encoding)
    for words in (["dataset=mine"], ["dataset=digits"]):
        launch("evaluate", ["--config-dir", str(tmp_path), *words, "--cfg", "job"])
        err = capsys.readouterr().err
        assert "Traceback" not in err and err.count("\n") <= 1, err


def test_a_signal_that_a_library_swallows_comes_again() -> None:
    def work() -> int:
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        for _ in range(10**9):
            pass
        return 0

    assert guarded(work) == 143


def test_a_signal_that_a_destructor_swallows_stops_all_the_same(capfd: pytest.CaptureFixture[str]) -> None:
    """Python prints what a ``__del__`` raises, and goes on; here to the end, before the signal could come again."""

    class Last:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGTERM)

    def work() -> int:
        last = Last()
        del last
        return 0

    hook = sys.unraisablehook
    assert guarded(work) == 143 and sys.unraisablehook is hook
    assert capfd.readouterr().err == "stopped by SIGTERM\n"
    assert guarded(lambda: 0) == 0, "the signal is forgotten"


def test_an_error_in_place_of_a_signal_that_does_not_know_of_it_is_a_stop(
    engine: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    """Code in C may take the exception of a signal for one of its own, which has no context then."""

    def interrupted(config: Any, run: Any) -> float:
        with run.phase("load"):
            with contextlib.suppress(SystemExit):
                signal.raise_signal(signal.SIGTERM)
            raise UserError("could not determine the shape of object type 'UntypedStorage'")

    engine(interrupted)
    assert launch("train-mat", [*QUICK, "hydra.run.dir=run"]) == 143
    place = Path("run").absolute()
    assert capfd.readouterr().err == f"go on with: robustcli train-mat resume={place}\nstopped by SIGTERM\n"
    assert json.loads((place / "manifest.json").read_text())["status"] == "interrupted"


def test_a_run_that_is_done_is_not_to_be_resumed(engine: Any, capfd: pytest.CaptureFixture[str]) -> None:
    def ends(config: Any, run: Any) -> float:
        run._exit.callback(lambda: signal.raise_signal(signal.SIGTERM))
        return 0.0

    engine(ends)
    assert launch("train-mat", [*QUICK, "hydra.run.dir=run"]) == 143
    assert f"{Path('run').absolute()} is done\n" in capfd.readouterr().err and Path("run/DONE").is_file()


def test_an_end_in_order_is_not_disturbed_by_the_signal_that_asked_for_it() -> None:
    closed: list[bool] = []

    def work() -> int:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            sum(range(20_000_000))  # several times as long as until a swallowed one comes again
            closed.append(True)
        return 0

    assert guarded(work) == 143 and closed == [True]
