"""Jobs in Slurm: their signals, those still in its queue, mistakes; and all of it in a real Slurm of one node."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from robustcli.cli import submitted
from robustcli.cli.recorded import refuse_untrusted
from robustcli.cli.submitted import check_launcher, is_lost, requeued, wait_for_earlier
from robustcli.utils.errors import UserError
from robustcli.utils.stops import asked_to_stop, note_stop, stop_signals

LOCAL = Path(__file__).parents[2] / "benchmarks" / "slurm_local.sh"
SLURM = "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher"
# A job that waits until it is stopped, and ends as soon as it goes on; the second does not wait.
ENGINE = """
import sys, time, types
def run(config, run):
    if config.seed == 0 and not run.resumed:
        (run.directory / "waiting").touch()
        time.sleep(900)
    return float(config.seed) + 0.5
engine = types.ModuleType("robustcli.engines.train")
engine.run = run
sys.modules["robustcli.engines.train"] = engine
"""


@pytest.fixture
def as_job(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """This process as a job of submitit, whose handler notes that it was called, and whether all was closed by then."""
    called: list[str] = []
    monkeypatch.setenv("SUBMITIT_EXECUTOR", "slurm")
    before = signal.signal(signal.SIGUSR2, lambda *_: called.append("requeued"))
    yield called
    signal.signal(signal.SIGUSR2, before)
    note_stop(None)


def test_a_job_is_closed_before_it_is_put_back_into_the_queue(as_job: list[str]) -> None:
    assert signal.SIGUSR2 in stop_signals()
    with pytest.raises(SystemExit) as ended, requeued():
        try:
            signal.raise_signal(signal.SIGUSR2)
            pytest.fail("it was not stopped")
        finally:
            as_job.append("closed")
    assert as_job == ["closed", "requeued"] and ended.value.code == 128 + signal.SIGUSR2


def test_sigterm_ends_a_job_and_leaves_the_queue_to_slurm(as_job: list[str]) -> None:
    with pytest.raises(SystemExit) as ended, requeued():
        signal.raise_signal(signal.SIGTERM)
    assert as_job == [] and ended.value.code == 143


def test_a_job_that_may_meet_no_further_time_limit_says_so(monkeypatch: pytest.MonkeyPatch, as_job: list[str]) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("Job not requeued because: timed-out too many times.")

    signal.signal(signal.SIGUSR2, refuse)
    with pytest.raises(UserError, match=r"timed-out too many times.*hydra\.launcher\.max_num_timeout"), requeued():
        signal.raise_signal(signal.SIGUSR2)


def test_elsewhere_no_signal_is_touched() -> None:
    assert signal.SIGUSR2 not in stop_signals()
    handler = signal.getsignal(signal.SIGTERM)
    with requeued():
        assert signal.getsignal(signal.SIGTERM) is handler
    assert asked_to_stop() is None


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of commands in front of all others, with sbatch and srun."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sbatch", "srun"):
        script(folder / name, "exit 1")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_tasks_that_a_command_cannot_share_are_refused(commands: Path) -> None:
    with pytest.raises(UserError, match=r"asks for 4 tasks a job, but evaluate works in one: .* processes=4 "):
        check_launcher("evaluate", {"_target_": SLURM, "nodes": 2, "tasks_per_node": 2})
    check_launcher("evaluate", {"_target_": SLURM, "nodes": 1, "tasks_per_node": 1})
    check_launcher("evaluate", {"_target_": "a.JoblibLauncher", "tasks_per_node": 2})


def test_a_machine_without_slurm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match=r"no sbatch was found.* or take hydra/launcher=joblib"):
        check_launcher("evaluate", {"_target_": SLURM})


def test_jobs_of_a_killed_sweep_are_waited_for(
    commands: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(submitted, "_LOOK", 0.01)
    sweep = tmp_path / "sweep"
    for name in ("12_0", "12_1", "7"):
        (sweep / ".submitit" / name).mkdir(parents=True)
    (sweep / ".submitit" / "7" / "7_0_result.pkl").touch()
    (sweep / ".submitit" / "7" / "7_0_log.err").touch()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "8_0_result.pkl").touch()
    (sweep / ".submitit" / "8").symlink_to(elsewhere)
    # In the queue at the first two looks; 99 is of others.
    script(commands / "squeue", f"echo 99; n=$(cat {tmp_path}/n 2>/dev/null | wc -c); printf x >> {tmp_path}/n\n"
                                'if [ "$n" -lt 2 ]; then echo 12_1; fi')  # fmt: skip
    wait_for_earlier(sweep)
    assert capsys.readouterr().out == "waiting for jobs of this sweep that are in Slurm still: 12_1\n"
    assert (tmp_path / "n").read_text() == "xxx"
    left = sorted(path.name for path in (sweep / ".submitit").rglob("*"))
    assert left == ["12_0", "12_1", "7", "7_0_log.err"], "nothing that submitit would unpickle, and the logs"
    assert (elsewhere / "8_0_result.pkl").exists()
    script(commands / "squeue", "echo 'no controller' >&2; exit 1")
    with pytest.raises(UserError, match="no controller"):
        wait_for_earlier(sweep)


def test_what_slurm_did_not_take_is_said_in_its_words() -> None:
    kind = type("FailedJobError", (RuntimeError,), {"__module__": "submitit.core.utils"})
    with pytest.raises(UserError, match="did not take the jobs: invalid partition specified: x; Batch"):
        is_lost(kind("sbatch: error: invalid partition specified: x\nsbatch: error: Batch job submission failed"))
    assert is_lost(kind("Job 12 (task: 0) with path x has not produced any output (state: FAILED)"))
    assert not is_lost(RuntimeError("sbatch: error: of nobody"))


def test_what_a_job_asks_for_is_no_code_of_others(tmp_path: Path) -> None:
    harmless = ["hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", "hydra.launcher.partition=gpu-long"]
    refuse_untrusted(tmp_path, harmless)
    for word in ("hydra.launcher.setup=[id]", "hydra.launcher.partition='a\nid'", "hydra.launcher.qos=${x:y}"):
        with pytest.raises(UserError, match="--trust"):
            refuse_untrusted(tmp_path, [*harmless, word])


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a Slurm of one node."""
    pytest.importorskip("submitit", reason="needs robustcli[cluster]")
    for name in ("sinfo", "slurmctld", "slurmd", "munged"):
        if shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
            pytest.skip(f"needs {name}: apt-get install slurm-wlm munge")
    if os.getuid() != 0:
        pytest.skip("slurmd has to be root")
    with subprocess.Popen(
        [str(LOCAL), "sh", "-c", 'echo "$SLURM_CONF"; echo "$PATH"; cat'],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as daemons:
        assert daemons.stdout is not None
        config, commands = (daemons.stdout.readline().strip() for _ in range(2))
        if not commands:
            pytest.skip(f"Slurm does not start here: {daemons.communicate()[1]}")
        (tmp_path / "sitecustomize.py").write_text(ENGINE)
        path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
        try:
            yield {**os.environ, "SLURM_CONF": config, "PATH": commands, "PYTHONPATH": path}
        finally:
            daemons.communicate("")


def until(done: Callable[[], bool]) -> None:
    end = time.monotonic() + 300  # of a busy machine
    while not done():
        assert time.monotonic() < end
        time.sleep(0.1)


@pytest.fixture
def start(slurm: dict[str, str], tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts ``robustcli train-mat`` with the engine above, in Slurm too."""
    started: list[subprocess.Popen[str]] = []

    def popen(*words: str) -> subprocess.Popen[str]:
        command, pipe = [sys.executable, "-m", "robustcli", "train-mat", *words], subprocess.PIPE
        started.append(subprocess.Popen(command, cwd=tmp_path, env=slurm, stdout=pipe, stderr=pipe, text=True))
        return started[-1]

    yield popen
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.slurm
@pytest.mark.timeout(900)
def test_a_sweep_in_slurm_outlives_the_process_that_submitted_it(
    slurm: dict[str, str], start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    def ask(*words: str) -> str:
        return subprocess.run(words, env=slurm, capture_output=True, text=True, check=True).stdout.strip()

    launcher = ("hydra/launcher=submitit_slurm", "hydra.launcher.timeout_min=60", "hydra.sweep.dir=sweep")
    first = start("--multirun", "seed=0,1", "attacks=none", *launcher)
    sweep = tmp_path / "sweep"
    until(lambda: (sweep / "0" / "waiting").exists() and (sweep / "1" / "DONE").exists())
    first.kill()

    def running() -> list[str]:
        return ask("squeue", "--noheader", "--array", "--states=running", "--format=%i").split()

    until(lambda: len(running()) == 1)  # the other one is written, and ends
    (job,) = running()
    assert job.endswith("_0")
    second = start("resume=sweep")
    assert second.stdout is not None
    assert second.stdout.readline() == f"waiting for jobs of this sweep that are in Slurm still: {job}\n"
    ask("scancel", "--signal=USR2", job)
    out, err = second.communicate(timeout=300)
    assert second.returncode == 0, err
    assert out.count("done") == 2
    sessions = json.loads((sweep / "0" / "manifest.json").read_text())["sessions"]
    assert [session["status"] for session in sessions] == ["interrupted", "done"], "saved, requeued, ended"
    assert len(list((sweep / ".submitit").glob("*_*"))) == 2, "no job was submitted twice"
