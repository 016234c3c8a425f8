"""Training commands in several processes: the files of one, signals, a lost process, and what is refused beforehand."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from robustcli.cli.launch import guarded, launch
from robustcli.cli.rerun import rerun
from robustcli.training.group import Group
from robustcli.training.state import Saved
from robustcli.utils.stops import stop_signals

SMALL = [
    *("model.checkpoint=null", "dataset.train=48", "dataset.val=8", "dataset.test=8", "threat.edits=query"),
    *("trainer.batch_size=8", "trainer.accumulation=2", "trainer.save_minutes=0", "trainer.log_every=1"),
    *("evaluation.before=false", "evaluation.eps_curve=[]", "evaluation.resamples=20"),
    *("attacks=none", "diagnostics=off", "model.width=32", "model.text_width=32"),
]
LONG = [*SMALL, "trainer.max_steps=30"]
TIMELESS = ("training.csv", "metrics.json", "checkpoints/last.safetensors", "records.parquet")


@contextmanager
def started(argv: list[str], **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A process that is ended with the context."""
    process = subprocess.Popen(
        argv,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def wait_for(done: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 120
    while not done():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def members(session: int) -> list[int]:
    """Processes of a session that are alive."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            fields = (place / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(place.name))
    return found


def gone(session: int) -> bool:
    end = time.monotonic() + 20
    while members(session) and time.monotonic() < end:
        time.sleep(0.05)
    return not members(session)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one process."""
    directory = tmp_path_factory.mktemp("runs") / "alone"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
        assert launch("train-mat", [*LONG, f"hydra.run.dir={directory}"]) == 0
    return directory


def check_same(one: Path, other: Path) -> None:
    for name in TIMELESS:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert not (other / "parts").exists()


def cli(*words: str) -> list[str]:
    return [sys.executable, "-m", "robustcli", "train-mat", *words]


def test_two_processes_leave_the_files_of_one(alone: Path, tmp_path: Path) -> None:
    environment = dict(os.environ)
    assert launch("train-mat", [*LONG, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    check_same(alone, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["processes"] == 2
    assert environment == dict(os.environ)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_signal_to_all_saves_and_ends_all_and_another_number_goes_on(alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with started(cli(*LONG, "trainer.devices=2", "trainer.strategy=zero2", f"hydra.run.dir={run}")) as process:
        wait_for((run / "parts" / "state.zip").exists, process)
        os.killpg(process.pid, signal.SIGUSR1)  # as a batch system does
        _, err = process.communicate(timeout=60)
        assert process.returncode == 128 + signal.SIGUSR1, err
        assert gone(process.pid)
    assert "Traceback" not in err and f"go on with: robustcli train-mat resume={run}\n" in err
    assert json.loads((run / "manifest.json").read_text())["status"] == "interrupted"
    assert 1 <= Saved(run / "parts" / "state.zip", Group())["step"] < 30
    assert launch("train-mat", [f"resume={run}", "trainer.devices=1", "trainer.strategy=ddp"]) == 0
    check_same(alone, run)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("first", [False, True], ids=["another", "the first"])
def test_a_killed_process_ends_all_in_a_sentence_and_another_number_goes_on(
    alone: Path, tmp_path: Path, first: bool
) -> None:
    run = tmp_path / "run"
    with started(cli(*LONG, "trainer.devices=2", f"hydra.run.dir={run}")) as process:
        wait_for((run / "parts" / "state.zip").exists, process)
        others = [each for each in members(process.pid) if each != process.pid]
        worker = next(each for each in others if "spawn_main" in Path(f"/proc/{each}/cmdline").read_text())
        os.kill(process.pid if first else worker, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
        assert process.returncode == (-signal.SIGKILL if first else 1)
        assert gone(process.pid)
    (said,) = [line for line in err.splitlines() if not line.startswith("train ")]
    assert f"resume={run}" in said and "Traceback" not in err
    assert ("process 2 of 2 has lost" if first else "process 2 of 2 was lost (signal 9;") in said
    if not first:
        assert launch("train-mat", [f"resume={run}", "trainer.devices=1"]) == 0
        check_same(alone, run)


def test_what_another_process_meets_on_loading_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "sitecustomize.py").write_text(
        "import multiprocessing\n"
        "if multiprocessing.parent_process() is not None or 'spawn_main' in ' '.join(__import__('sys').orig_argv):\n"
        "    import os\n"
        "    os.environ['ROBUSTCLI_CACHE'] = '/proc/nowhere'\n"
    )
    words = [*LONG, "trainer.devices=2", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("train-mat", words) == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error")]
    assert len(said) == 1 and "/proc/nowhere" in said[0], said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["trainer.devices=3"],
            "trainer.accumulation is 2, whose batches 3 processes cannot share",
        ),
        (["trainer.devices=0"], "trainer.devices is 0"),
        (["trainer.negatives=all"], "trainer.negatives is 'all'"),
        (["trainer.negatives=step", "defense=fare"], "which that of defense=fare is not"),
    ],
)
def test_mistakes_come_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert launch("train-mat", [*SMALL, *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_accumulation_that_would_do_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = [*SMALL, "trainer.devices=4", "trainer.batch_size=16", f"hydra.run.dir={tmp_path / 'run'}"]
    assert launch("train-mat", words) == 2
    assert "such as trainer.accumulation=4 trainer.batch_size=8, or take" in capsys.readouterr().err


TORCHRUN = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
SRUN = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", "SLURM_JOB_ID": "7"}


def test_another_number_of_devices_than_torchrun_has_started_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert launch("train-mat", [*SMALL, "trainer.devices=4"]) == 2
    assert "torchrun has started 2 processes: leave it out there." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environment", "rank", "command", "words", "sentence"),
    [
        (TORCHRUN, "RANK", "evaluate", [], "start evaluate without torchrun, with processes=2; runs"),
        (SRUN, "SLURM_PROCID", "purify", [], "in one task (srun --ntasks=1), with processes=2; runs"),
        (SRUN, "SLURM_PROCID", "augment", [], "start augment in one task (srun --ntasks=1); runs that differ are jobs"),
        (SRUN, "SLURM_PROCID", "attack", ["--multirun", "seed=0,1"], "each of which would do the same run"),
        (SRUN, "SLURM_PROCID", "train-mat", ["--multirun", "seed=0,1"], "share one training and no sweep: start a"),
        (SRUN, "SLURM_PROCID", "rerun", ["outputs"], "a run is rebuilt by one: start rerun in one task"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_equal_runs_are_refused_by_the_first_process_alone(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    environment: dict[str, str],
    rank: str,
    command: str,
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = []
    for number in ("0", "1"):
        monkeypatch.setenv(rank, number)
        done = guarded(lambda: rerun(Path(words[0]))) if command == "rerun" else launch(command, words)
        assert done == 2
        said.append("".join(capsys.readouterr()))
    assert sentence in said[0] and len(said[0].splitlines()) == 1 and said[1] == ""
    assert not list(tmp_path.iterdir())


def test_what_makes_no_run_answers_in_every_process(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in (SRUN | {"SLURM_PROCID": "1"}).items():
        monkeypatch.setenv(name, value)
    assert launch("evaluate", ["-c", "job", "attacks=none", "seed=7"]) == 0
    assert "seed: 7" in capfd.readouterr().out


@pytest.mark.parametrize("alone", [{"SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, SRUN | {"SLURM_STEP_NUM_TASKS": "1"}])
def test_a_batch_script_and_a_step_of_one_task_run_what_they_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alone: dict[str, str]
) -> None:
    """The first is a script of sbatch with several tasks, the second a job of submitit."""
    monkeypatch.chdir(tmp_path)
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    engine: Any = ModuleType("robustcli.engines.evaluate")
    engine.run = lambda config, run: 0.5
    monkeypatch.setitem(sys.modules, "robustcli.engines.evaluate", engine)
    assert launch("evaluate", ["attacks=none", "hydra.run.dir=run"]) == 0
    assert (tmp_path / "run" / "DONE").is_file()


def test_torchrun_starts_them_too_and_the_others_leave_nothing(alone: Path, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "robustcli"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    process = subprocess.run(
        [*argv, "train-mat", *LONG],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert process.returncode == 0, process.stderr
    (run,) = tmp_path.rglob("config.yaml")
    check_same(alone, run.parent)
    assert len(list(run.parent.parent.iterdir())) == 1
    assert process.stdout.count("run: ") == 1


def test_a_user_signal_that_another_program_handles_stays_with_it() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    try:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL)
        assert signal.SIGUSR1 in stop_signals()
        signal.signal(signal.SIGUSR1, lambda *_: None)
        assert signal.SIGUSR1 not in stop_signals()
    finally:
        signal.signal(signal.SIGUSR1, before)
