"""The run directory: claimed once, whole at any time, marked when done or failed, and open to a resume."""

import contextlib
import errno
import itertools
import json
import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from robustcli.runs import manifest, provenance
from robustcli.runs.manifest import new_directory
from robustcli.runs.run import Run
from robustcli.utils import files
from robustcli.utils.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIG: dict[str, Any] = {
    "seed": 3,
    "attack": {"seed": 4, "image": {"eps": "4/255"}},
    "resume": None,
    "trainer": {"device": "cpu"},
}


def start(directory: Path, config: Mapping[str, Any] = CONFIG, command: str = "train-mat") -> Run:
    return Run.open(command, config, directory, ["seed=3", "threat.eps=4/255"])


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_finished_run_holds_everything(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        with run.phase("train"):
            run.log.info("step 1")
        run.note(data_fingerprint="abc", weights={"start": "1"})
        run.note(weights={"end": "2"})
        table = pd.DataFrame({"model": ["mat"], "recall": [0.1 + 0.2]})
        run.write_metrics({"mat": {"pgd": {"recall": 0.1 + 0.2}}, "steps": torch.tensor(7)}, table)
        run.write_records(pd.DataFrame({"id": [0, 1]}))
        run.write_report("# a\n", "<p>a")
        assert run.finish(0.25) == 0.25
    names = {path.name for path in run.directory.iterdir()} - {".lock"}
    assert names == {
        *("config.yaml", "overrides.yaml", "manifest.json", "metrics.json", "metrics.csv", "records.parquet"),
        *("report.md", "report.html", "log.txt", "DONE"),
    }
    assert read(run.directory / "metrics.json") == {"mat/pgd/recall": 0.1 + 0.2, "steps": 7, "objective": 0.25}
    assert "eps: 4/255" in (run.directory / "config.yaml").read_text()
    assert (run.directory / "overrides.yaml").read_text() == "- seed=3\n- threat.eps=4/255\n"
    assert "step 1" in (run.directory / "log.txt").read_text()
    manifest = read(run.directory / "manifest.json")
    assert manifest["status"] == "done" and manifest["command"] == "train-mat" and manifest["device"] == "cpu"
    assert manifest["seeds"] == {"seed": 3, "attack.seed": 4}
    assert manifest["weights"] == {"start": "1", "end": "2"} and manifest["data_fingerprint"] == "abc"
    assert manifest["torch"]["cpu_capability"] == torch.backends.cpu.get_cpu_capability()
    assert torch.__version__.startswith(manifest["packages"]["torch"].partition("+")[0])
    assert set(manifest["phases"]) == {"train"} and manifest["peak_memory"]["process_mib"] > 0
    assert manifest["start"] <= manifest["end"] and len(manifest["code"]["sha256"]) == 64


def test_manifest_says_the_threads_that_the_engine_chose(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    try:
        with start(tmp_path / "a") as run:
            torch.set_num_threads(before + 1)
    finally:
        torch.set_num_threads(before)
    assert read(run.directory / "manifest.json")["torch"]["threads"] == before + 1


def test_the_time_of_a_phase_within_another_is_its_own_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 5.0, 7.0])
    with start(tmp_path / "a") as run:
        with monkeypatch.context() as patch:
            patch.setattr("robustcli.runs.run.time.perf_counter", lambda: next(clock))
            with run.phase("report"), run.phase("diagnostics"):
                pass
        assert run.manifest["phases"] == {"diagnostics": 4.0, "report": 3.0}


def test_done_run_is_not_worked_on_again(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        run.finish(0.5)
    before = {path.name: path.stat().st_mtime_ns for path in run.directory.iterdir() if path.name != ".lock"}
    with start(tmp_path / "a") as again:
        assert again.done and again.objective == 0.5
    assert before == {path.name: path.stat().st_mtime_ns for path in run.directory.iterdir() if path.name != ".lock"}


def test_other_config_is_refused_and_the_keys_are_named(tmp_path: Path) -> None:
    with start(tmp_path / "a"):
        pass
    other = CONFIG | {"attack": {"seed": 4, "image": {"eps": "8/255"}}}
    with pytest.raises(UserError, match=r"attack\.image\.eps was 4/255 and is 8/255"):
        start(tmp_path / "a", other)
    with pytest.raises(UserError, match="holds a run of `train-mat`, not of `evaluate`"):
        start(tmp_path / "a", command="evaluate")
    assert start(tmp_path / "a", CONFIG | {"resume": str(tmp_path / "a")}).done, "resume alone is no other config"


def test_a_run_that_failed_before_it_had_results_gives_way(tmp_path: Path) -> None:
    other = CONFIG | {"attack": {"seed": 4, "image": {"eps": "8/255"}}}
    with pytest.raises(UserError), start(tmp_path / "a"):
        raise UserError("attack.name is 'PGDD'")
    with start(tmp_path / "a", other) as run:
        assert run.resumed == 0 and not (tmp_path / "a" / "FAILED").exists()
    with pytest.raises(UserError, match="holds a run of another config"):
        start(tmp_path / "a")
    with pytest.raises(UserError), start(tmp_path / "b") as run:
        run.write_metrics({"a": 1.0})
        raise UserError("too late")
    with pytest.raises(UserError, match="holds a run of another config"):
        start(tmp_path / "b", other)


def test_exception_leaves_a_marker_with_traceback_until_the_resume(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), start(tmp_path / "a") as run:
        _ = 1 / 0
    text = (run.directory / "FAILED").read_text()
    assert text.startswith("ZeroDivisionError: division by zero\n") and "Traceback" in text
    assert not (run.directory / "DONE").exists()
    assert read(run.directory / "manifest.json")["status"] == "failed"
    with start(tmp_path / "a") as again:
        assert not (run.directory / "FAILED").exists() and again.resumed == 1
    assert (run.directory / "DONE").exists()
    assert [session["status"] for session in again.manifest["sessions"]] == ["failed", "done"]


def test_user_error_leaves_the_sentence_only(tmp_path: Path) -> None:
    with pytest.raises(UserError), start(tmp_path / "a") as run:
        raise UserError("threat.eps is 4: did you mean 4/255?")
    assert (run.directory / "FAILED").read_text() == "threat.eps is 4: did you mean 4/255?\n"


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(143), SystemExit(130)])
def test_interrupt_leaves_no_marker_and_says_how_to_go_on(tmp_path: Path, stop: BaseException) -> None:
    with pytest.raises(type(stop)), start(tmp_path / "a") as run:
        raise stop
    assert not (run.directory / "DONE").exists() and not (run.directory / "FAILED").exists()
    hint = f"robustcli train-mat seed=3 threat.eps=4/255 resume={run.directory}"
    assert hint in (run.directory / "log.txt").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.5", torch.tensor(float("nan"))])
def test_metric_without_a_finite_value_is_an_error(tmp_path: Path, value: Any) -> None:
    run = start(tmp_path / "a")
    with pytest.raises(ValueError, match=r"metric mat/recall is .* finite number"):
        run.write_metrics({"mat": {"recall": value}}, pd.DataFrame())
    assert not (run.directory / "metrics.json").exists()
    with pytest.raises(ValueError, match="objective"):
        run.finish(float("nan"))


def test_infinite_number_in_the_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="infinite"):
        start(tmp_path / "a").write_metrics({}, pd.DataFrame({"a": ["x", "y"], "b": [1.0, float("-inf")]}))


def test_part_is_computed_once_and_kept_until_done(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute() -> pd.DataFrame:
        calls.append(1)
        return pd.DataFrame({"rank": [1, 5], "kind": pd.Categorical(["a", "b"])}, index=[7, 8])

    with pytest.raises(RuntimeError), start(tmp_path / "a") as run:
        first = run.records_part("mat-pgd", compute)
        run.write_records(first)
        raise RuntimeError
    with start(tmp_path / "a") as run:
        second = run.records_part("mat-pgd", compute)
    pd.testing.assert_frame_equal(first, second)
    assert len(calls) == 1
    assert not (run.directory / "parts").exists()


def test_part_whose_computation_failed_is_not_kept(tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    with pytest.raises(ZeroDivisionError):
        run.records_part("a", lambda: pd.DataFrame({"a": [1 / 0]}))
    assert run.records_part("a", lambda: pd.DataFrame({"a": [2]}))["a"].tolist() == [2]


@pytest.mark.parametrize("name", ["../a", "a/b", "", ".hidden"])
def test_names_cannot_leave_the_directory(tmp_path: Path, name: str) -> None:
    run = start(tmp_path / "a")
    for use in (run.figure, run.checkpoint_path):
        with pytest.raises(ValueError, match="name of a file"):
            use(name)


@pytest.mark.parametrize("name", ["../a", "before (a/b) sga", "..", "ä"])
def test_part_may_have_any_name(tmp_path: Path, name: str) -> None:
    run = start(tmp_path / "a")
    run.records_part(name, lambda: pd.DataFrame({"a": [1]}))
    assert len(list((run.directory / "parts").iterdir())) == 1
    assert run.records_part(name, lambda: pd.DataFrame({"a": [2]}))["a"].tolist() == [1]


def test_refused_job_leaves_a_marker_that_its_run_removes(tmp_path: Path) -> None:
    manifest.record_refusal(tmp_path / "a", ["seed=3"], "dataset.root is missing")
    assert (tmp_path / "a" / "FAILED").read_text() == "dataset.root is missing\n"
    with start(tmp_path / "a"):
        assert not (tmp_path / "a" / "FAILED").exists()
    manifest.record_refusal(tmp_path / "a", ["seed=4"], "not for a run")
    assert not (tmp_path / "a" / "FAILED").exists()


def test_places_of_pictures_and_checkpoints(tmp_path: Path) -> None:
    run = start(tmp_path / "a")
    assert run.figure("eps") == run.directory / "figures" / "eps.png"
    assert run.checkpoint_path("last") == run.directory / "checkpoints" / "last.safetensors"
    assert run.checkpoint_path("state.pt").name == "state.pt"


def test_log_handlers_do_not_leak_between_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, package = logging.getLogger(), logging.getLogger("robustcli")
    monkeypatch.setattr(package, "level", logging.WARNING)
    before = (list(root.handlers), package.level)
    with start(tmp_path / "a"):
        pass
    with pytest.raises(RuntimeError), start(tmp_path / "b"):
        logging.getLogger("robustcli.training.trainer").info("of b")
        raise RuntimeError
    assert (list(root.handlers), package.level) == before
    assert "of b" not in (tmp_path / "a" / "log.txt").read_text()
    assert "of b" in (tmp_path / "b" / "log.txt").read_text()


def test_second_opening_of_a_live_run_is_refused(tmp_path: Path) -> None:
    refused = pytest.raises(UserError, match=f"is being worked on by process {os.getpid()}")
    with start(tmp_path / "a"), refused:
        start(tmp_path / "a")
    assert start(tmp_path / "a").done


def forked(work: Callable[..., None], *arguments: Any) -> tuple[Any, Any]:
    """A process that runs ``work(pipe, *arguments)``, and this end of its pipe; a fork spares the imports."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe()
    process = context.Process(target=work, args=(there, *arguments), daemon=True)
    process.start()
    return process, here


def hold(pipe: Any, directory: Path) -> None:
    with Run.open("train-mat", {"seed": 0}, directory, []) as run:
        run.records_part("a", lambda: pd.DataFrame({"a": [1]}))
        pipe.send("open")
        for step in itertools.count():
            run.write_metrics({"step": step, "last": step})


def test_kill_leaves_whole_files_and_gives_the_lock_back(tmp_path: Path) -> None:
    worker, pipe = forked(hold, tmp_path / "a")
    assert pipe.recv() == "open"
    with pytest.raises(UserError, match=f"process {worker.pid}"):
        start(tmp_path / "a", {"seed": 0})
    while not (tmp_path / "a" / "metrics.json").exists():
        time.sleep(0.01)
    worker.kill()
    worker.join()
    assert set(read(tmp_path / "a" / "metrics.json")) == {"step", "last"}
    with start(tmp_path / "a", {"seed": 0}) as run:
        assert run.resumed == 1 and run.records_part("a", pd.DataFrame)["a"].tolist() == [1]
        assert not list(run.directory.rglob(".tmp-*"))
    assert [session["status"] for session in run.manifest["sessions"]] == ["killed", "done"]


def outlived(pipe: Any, directory: Path) -> None:
    run = Run.open("train-mat", {"seed": 0}, directory, [])
    worker = os.fork()
    if worker == 0:
        time.sleep(60)
        os._exit(0)
    pipe.send(worker)
    pipe.recv()
    del run


def test_a_worker_that_outlives_its_killed_parent_does_not_keep_the_lock(tmp_path: Path) -> None:
    parent, pipe = forked(outlived, tmp_path / "a")
    worker = pipe.recv()
    try:
        parent.kill()
        parent.join()
        with start(tmp_path / "a", {"seed": 0}) as run:
            assert run.resumed == 1
    finally:
        os.kill(worker, signal.SIGKILL)


def left_by_a_child(run: Run) -> None:
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            run._exit.close()
        os._exit(0)
    os.waitpid(child, 0)


def test_a_forked_child_does_not_give_the_lock_away(tmp_path: Path) -> None:
    with start(tmp_path / "a") as run:
        left_by_a_child(run)
        with pytest.raises(UserError, match=f"is being worked on by process {os.getpid()}"):
            start(tmp_path / "a")


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
def test_a_planted_link_for_a_lock_is_refused_and_its_target_untouched(tmp_path: Path, plant: str) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    (tmp_path / "a").mkdir()
    getattr(tmp_path / "a" / ".lock", plant)(target)
    with pytest.raises(UserError, match=r"\.lock cannot be locked \(it is a link to another file\): remove it"):
        start(tmp_path / "a")
    assert target.read_text() == "mine"
    (tmp_path / "a" / ".lock").unlink()
    with start(tmp_path / "a"):
        pass


def test_run_taken_up_elsewhere_says_what_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt), start(tmp_path / "a"):
        raise KeyboardInterrupt
    packages = provenance.packages()
    monkeypatch.setattr(provenance, "packages", lambda: packages | {"torch": "0.1"})
    state = provenance.torch_state()
    monkeypatch.setattr(provenance, "torch_state", lambda: state | {"threads": 99})
    with start(tmp_path / "a") as run:
        pass
    changed = run.manifest["sessions"][-1]["changed"]
    assert changed["packages.torch"][1] == "0.1" and changed["torch.threads"] == (state["threads"], 99)
    assert "packages.torch is 0.1" in (run.directory / "log.txt").read_text()
    assert run.manifest["packages"] == packages, "the manifest keeps what the run began with"


def test_racing_processes_get_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = iter(["aaaaaa", "aaaaaa", "bbbbbb"])
    monkeypatch.setattr(manifest.secrets, "token_hex", lambda _: next(tokens))
    assert new_directory(tmp_path) != new_directory(tmp_path)
    assert next(tokens, None) is None, "the second should have met the first one's name"


def test_many_at_once_never_share_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest.secrets, "token_hex", lambda _: f"{time.monotonic_ns() % 16:x}")
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: new_directory(tmp_path), range(12)))
    assert len(set(made)) == 12


def claim(pipe: Any, directory: Path) -> None:
    pipe.recv()
    try:
        run = Run.open("train-mat", {"seed": 0}, directory, [])
        pipe.send("won")
        pipe.recv()
        del run
    except UserError:
        pipe.send("lost")


def test_of_processes_that_claim_one_directory_one_gets_it(tmp_path: Path) -> None:
    workers = [forked(claim, tmp_path / "a") for _ in range(3)]
    for _, pipe in workers:
        pipe.send("go")
    answers = [pipe.recv() for _, pipe in workers]
    for worker, _ in workers:
        worker.kill()
        worker.join()
    assert sorted(answers) == ["lost", "lost", "won"]


def test_import_is_light() -> None:
    code = (
        "import sys, robustcli.runs.run\nprint([name for name in ('torch', 'pandas', 'hydra') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def test_a_resume_that_reads_other_inputs_is_refused(tmp_path: Path) -> None:
    """Parts judged with old weights beside new ones would make a table of two models."""
    with pytest.raises(KeyboardInterrupt), Run.open("evaluate", {"seed": 0}, tmp_path / "run", []) as run:
        run.note_inputs(weights={"model": "aaaa"})
        raise KeyboardInterrupt
    with (
        pytest.raises(UserError, match="weights model is not what"),
        Run.open("evaluate", {"seed": 0}, tmp_path / "run", []) as run,
    ):
        run.note_inputs(weights={"model": "bbbb"})


@pytest.mark.parametrize("held", [["parts/mine.parquet"], ["config.yaml"], ["log.txt"], ["a/.tmp-1-x"], [".git/HEAD"]])
def test_a_directory_that_is_no_run_is_refused_and_left_as_it_is(tmp_path: Path, held: list[str]) -> None:
    place = tmp_path / "a"
    for name in held:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text("mine")
    before = sorted(place.rglob("*"))
    with pytest.raises(UserError, match="is not empty and holds no run"):
        start(place)
    assert sorted(place.rglob("*")) == before


def test_what_lies_beside_the_files_of_a_run_stays(tmp_path: Path) -> None:
    records = pd.DataFrame({"x": [1]})
    with start(tmp_path / "a") as run:
        run.records_part("one", lambda: records)
        run.write_records(records)
        for name in (".tmp-mine", "parts/mine.txt", "parts/.tmp-1-mine"):
            (run.directory / name).write_text("mine")
    (run.directory / "DONE").unlink()
    with start(tmp_path / "a"):
        pass
    assert not (run.directory / "parts" / "one.parquet").exists()
    assert {path.name for path in run.directory.rglob("*mine*")} == {".tmp-mine", "mine.txt", ".tmp-1-mine"}


@pytest.mark.parametrize("name", ["manifest.json", "config.yaml"])
@pytest.mark.parametrize("content", [b"", b"[1]", bytes(range(256)), b"{}"])
def test_a_damaged_run_is_not_resumed(tmp_path: Path, name: str, content: bytes) -> None:
    with start(tmp_path / "a") as run:
        pass
    (run.directory / name).write_bytes(content)
    if (name, content) != ("config.yaml", b"{}"):
        with pytest.raises(UserError, match="holds a damaged run"):
            start(tmp_path / "a")
    (run.directory / name).unlink()
    with pytest.raises(UserError, match="holds no run, or a damaged one"):
        start(tmp_path / "a")
    assert not (run.directory / name).exists()


@pytest.mark.parametrize("name", ["log.txt", "parts", "figures", "manifest.json"])
def test_no_link_is_written_through(tmp_path: Path, name: str) -> None:
    with pytest.raises(ZeroDivisionError), start(tmp_path / "a") as run:
        _ = 1 / 0
    target = tmp_path / "precious"
    (run.directory / name).unlink(missing_ok=True)
    (run.directory / name).symlink_to(target)
    with pytest.raises(UserError, match=f"{name} is a link"):
        start(tmp_path / "a")
    assert not target.exists()


@pytest.mark.parametrize("plant", ["symlink_to", "hardlink_to"])
def test_a_log_that_is_planted_as_a_link_is_not_appended_to(tmp_path: Path, plant: str) -> None:
    target = tmp_path / "precious"
    target.write_text("mine")
    run = start(tmp_path / "a")
    getattr(run.directory / "log.txt", plant)(target)
    with pytest.raises(UserError, match=r"log\.txt cannot be written to \(it is a link to another file"), run:
        pass
    assert target.read_text() == "mine"


def test_what_is_no_directory_is_a_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for place in ("file", "file/below", "/dev/null", "/proc/nowhere"):
        with pytest.raises(UserError):
            start(tmp_path / place)


def test_a_directory_that_was_removed_is_no_finished_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="was removed while the run worked in it"), start(tmp_path / "a") as run:
        shutil.rmtree(run.directory)
    assert not run.directory.exists()


def test_a_full_disk_is_said_once_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Any] = []
    write = files.write_json

    def full(path: Path, content: Any) -> None:
        if any(reference() is not None for reference in held):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, content)

    class Writer:
        """Holds the blocks of the disk as long as it lives, as an open file does."""

        def __init__(self) -> None:
            held.append(weakref.ref(self))

        def write(self) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

    def work() -> None:
        writer = Writer()
        writer.write()

    monkeypatch.setattr(files, "write_json", full)
    with pytest.raises(OSError, match="No space"), start(tmp_path / "a") as run:
        work()
    assert read(run.directory / "manifest.json")["status"] == "failed" and (run.directory / "FAILED").exists()


def test_a_stop_that_a_library_turned_into_an_error_is_a_stop(tmp_path: Path) -> None:
    with pytest.raises(ImportError), start(tmp_path / "a") as run:
        try:
            raise SystemExit(129)
        except SystemExit:
            raise ImportError("cannot import name 'x'")  # noqa: B904 (as libraries do)
    assert read(run.directory / "manifest.json")["status"] == "interrupted"
    assert not (run.directory / "FAILED").exists()
