"""Chaos: commands killed at random moments, and resumed, until they end; then in the bits of an undisturbed run.

Run by ``make chaos``. Each kill is SIGKILL, SIGTERM, SIGINT or SIGHUP, at a moment that is uniform over the time of the
undisturbed run. The draws come from the seed; where a kill lands depends on the machine. Exit codes: 0, all hold; 1,
some do not, whose directories are kept.
"""

import argparse
import itertools
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.process import BaseProcess
from pathlib import Path

from robustcli.__main__ import main as cli
from robustcli.cli.rerun import compare

WARM = 0.7  # share of the processes that are forked with the libraries imported
AGAIN = 0.8  # probability that a resumed run is killed once more
PATIENCE = 60.0  # seconds from a signal that asks to stop until the end of its process
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOMENTS = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0, 5.0)  # seconds, of the matrix of signals
_FEW = ("evaluation=smoke", "attacks=none", "+attack@attacks.pgd=pgd", "attacks.pgd.steps=2")
_SCENES = ("dataset.train=64", "dataset.val=16", "dataset.test=16", "model.checkpoint=null", "model.width=32")
_DIGITS = ("dataset=digits", "model=digits")
_BARE = ("~baselines.noise", "~baselines.blur", "~baselines.jpeg", "diagnostics=off")
_JOBS = 2
_SHORT = ("trainer=smoke", "trainer.save_minutes=0")
COMMANDS: Mapping[str, Sequence[str]] = {
    "train-mat": ("train-mat", *_SCENES, *_SHORT, *_FEW, "diagnostics=off"),
    "together": (
        *("train-mat", *_SCENES, *_SHORT, *_FEW, "diagnostics=off"),
        *("trainer.accumulation=2", "trainer.devices=2", "trainer.max_steps=8"),
    ),
    "train-classifier": ("train-classifier", *_DIGITS, *_SHORT, *_FEW),
    "train-generator": ("train-generator", *_SHORT, "evaluation=smoke"),
    "evaluate": ("evaluate", *_DIGITS, *_FEW),
    "attack": ("attack", *_DIGITS, "evaluation=smoke", "attack=pgd", "attack.steps=2"),
    "purify": ("purify", *_FEW, "evaluation.fresh=2", "evaluation.limit=4", "purifier.draws=2", *_BARE),
    "augment": ("augment", "dataset.train=256", "augment=redraw", "shard=16"),
    "learn-alphas": ("learn-alphas", "evaluation=smoke", "adversarial.images=4", "trials=7"),
    "sweep": ("evaluate", "--multirun", f"seed=range({_JOBS})", *_DIGITS, *_FEW, "diagnostics=off"),
    "joblib": (
        *("evaluate", "--multirun", f"seed=range({_JOBS})", *_DIGITS, *_FEW, "diagnostics=off"),
        *("hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
    ),
}
_FORKS = multiprocessing.get_context("forkserver")
_ENGINES = ("train", "evaluate", "attack", "purify", "augment", "learn_alphas")
_LIBRARIES = ["hydra.main", "matplotlib.pyplot", *(f"robustcli.engines.{name}" for name in _ENGINES)]
_IN_MATRIX = ["train-mat", "train-classifier", "evaluate", "learn-alphas"]
# Files of a run that tell of its time and place; numbers among them are compared one by one.
_OF_ITS_TIME = {
    *("manifest.json", "log.txt", "DONE", "config.yaml", "overrides.yaml", "multirun.yaml"),
    *("report.md", "report.html"),
}
_COMPARED = {"metrics.json", "metrics.csv", "records.parquet", "sweep.csv", "seeds.csv", "datasets.csv"}


@dataclass
class Place:
    """Folders of a run in a folder of its own: its directory, its cache, and what it leaves in the temporary one."""

    root: Path

    def __post_init__(self) -> None:
        for folder in (self.cache, self.temporary):
            folder.mkdir(parents=True)

    @property
    def run(self) -> Path:
        return self.root / "run"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        return self.root / "tmp"

    @property
    def said(self) -> tuple[str, str]:
        """What the last process wrote to its two streams."""
        out, err = ((self.root / name).read_text(errors="replace") for name in ("out", "err"))
        return out, err


def work(words: Sequence[str], place: Place) -> None:
    """What a fresh process does with the command line ``words``, in a process that has the libraries already."""
    os.setsid()
    os.chdir(place.root)
    os.environ.update(surroundings(place))
    for name, stream in (("out", 1), ("err", 2)):
        os.dup2(os.open(place.root / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    heed_signals()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as Python has it at its start
    sys.argv = ["robustcli", *words]
    cli()


def heed_signals() -> None:
    """Ctrl-C is ignored by what runs in the background of a shell, SIGHUP under nohup, and children inherit that."""
    for number in SIGNALS[1:]:
        signal.signal(number, signal.SIG_DFL)


def surroundings(place: Place) -> dict[str, str]:
    """Environment of a process in ``place``."""
    return {"ROBUSTCLI_CACHE": str(place.cache), "TMPDIR": str(place.temporary), "OMP_NUM_THREADS": "1"}


class Process:
    """A process group of ``robustcli``, with its output in files of its place.

    Args:
        warm: forked from a server that has imported the libraries, which takes two of three seconds off; else as a
            shell starts it.
    """

    def __init__(self, words: Sequence[str], place: Place, *, warm: bool) -> None:
        self.made: BaseProcess | subprocess.Popen[bytes]
        if warm:
            self.made = _FORKS.Process(target=work, args=(list(words), place))
            self.made.start()
        else:
            with (place.root / "out").open("wb") as out, (place.root / "err").open("wb") as err:
                self.made = subprocess.Popen(
                    [sys.executable, "-m", "robustcli", *words],
                    cwd=place.root,
                    env={**os.environ, **surroundings(place)},
                    stdout=out,
                    stderr=err,
                    preexec_fn=heed_signals,
                    start_new_session=True,
                )
        assert self.made.pid is not None
        self.pid = self.made.pid

    def wait(self, seconds: float | None) -> int | None:
        """The exit code, minus the signal where one ended it; None: it is alive after ``seconds``."""
        if isinstance(self.made, subprocess.Popen):
            with suppress(subprocess.TimeoutExpired):
                return self.made.wait(seconds)
            return None
        self.made.join(seconds)
        return self.made.exitcode


@dataclass
class Session:
    """One process of a run: the signal that it was sent, if it lived so long, its exit code and what it said."""

    words: Sequence[str]
    sent: signal.Signals | None
    code: int | None  # None: it outlived the signal by `PATIENCE` seconds
    out: str
    err: str
    begun: bool  # it began a run or a sweep, or went on with one, and did not end it
    ended: bool = False  # it had said its last line when the signal came: some of those die of themselves

    def faults(self) -> Iterator[str]:
        """Sentences on what a stopped, or finished, process may not do."""
        said = self.out + self.err
        # Those of Python before it is up, and of joblib's tracker, which a closed terminal ends, are not of our making.
        if re.search(r'File "[^"]*robustcli/', said):
            yield "a traceback on the screen"
        if self.sent is None:
            if self.code != 0:
                yield f"exit code {self.code} without a signal"
            return
        if self.ended and self.code == 0:
            return
        if self.code not in (-self.sent, *([128 + self.sent] if self.sent is not signal.SIGKILL else [])):
            yield f"exit code {self.code} after {self.sent.name}"
        if self.sent is not signal.SIGKILL and self.code == 128 + self.sent:
            if "stopped by" not in self.err:
                yield "no line that it was stopped"
            if self.begun and "resume=" not in self.err:
                yield "no line that says how to go on"
        if self.sent is not signal.SIGKILL and self.code == -self.sent and self.begun:
            yield "ended by the signal itself, though a run was open"


def session(
    place: Place,
    words: Sequence[str],
    sent: signal.Signals | None = None,
    at: float | None = None,
    *,
    group: bool = False,
    warm: bool = False,
) -> Session:
    """A process of ``words`` that gets the signal ``sent`` after ``at`` seconds; ``group``: with all its children."""
    before = record_of(place.run)
    process = Process(words, place, warm=warm)
    code = process.wait(None if sent is None else at)
    ended = re.search("^(run|table): |is done already$", place.said[0], re.MULTILINE) is not None
    if code is not None or sent is None:
        return Session(words, None, code, *place.said, begun=False)
    (os.killpg if group else os.kill)(process.pid, sent)
    code = process.wait(PATIENCE)
    if code is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait(None)
    began = record_of(place.run) != before and begun(place.run)
    return Session(words, sent, code, *place.said, begun=began, ended=ended)


def record_of(directory: Path) -> list[float]:
    """Times of the last writes of what every process writes as it opens a run or a sweep."""
    records = (directory / name for name in ("manifest.json", "multirun.yaml"))
    return [path.stat().st_mtime for path in records if path.is_file()]


def begun(directory: Path) -> bool:
    """True where ``directory`` holds a run, or a sweep of `_JOBS`, that is not done."""
    if (directory / "multirun.yaml").is_file():
        return len(list(directory.glob("*/DONE"))) < _JOBS
    return (directory / "config.yaml").is_file() and not (directory / "DONE").is_file()


def resumable(directory: Path) -> bool:
    """True where ``resume=`` takes the directory."""
    return any((directory / name).is_file() for name in ("overrides.yaml", "multirun.yaml"))


def runs_under(directory: Path) -> list[Path]:
    """Run directories, relative: the directory itself, or those of the jobs of a sweep."""
    return sorted(path.parent.relative_to(directory) for path in directory.rglob("config.yaml"))


def files_under(directory: Path) -> set[str]:
    """Files and empty folders, relative; locks are among them, and stay by design."""
    found = {str(path.relative_to(directory)) for path in directory.rglob("*") if not any_below(path)}
    return {name for name in found if not name.startswith("torchinductor")}  # of torch, which makes it at an import


def any_below(path: Path) -> bool:
    """True for a folder that is not empty."""
    return path.is_dir() and any(path.iterdir())


def differences(whole: Place, cut: Place) -> Iterator[str]:
    """Sentences on what a run that was cut and resumed did not end with as the whole one did."""
    for name in ("run", "cache", "temporary"):
        before, after = (files_under(getattr(place, name)) for place in (whole, cut))
        for path in sorted(before ^ after):
            yield f"{name}/{path} {'is missing' if path in before else 'is left over'}"
    for run in runs_under(whole.run):
        if not (cut.run / run / "DONE").is_file():
            yield f"{run} is not done"
            continue
        for number, old, new in compare(whole.run / run, cut.run / run).numbers:
            yield f"{number} is {new} and not {old}"
    for path in sorted(files_under(whole.run) & files_under(cut.run)):
        name = Path(path).name
        if name in _OF_ITS_TIME | _COMPARED or name.endswith("lock"):
            continue
        if (whole.run / path).read_bytes() != (cut.run / path).read_bytes():
            yield f"{path} has other bytes"


@dataclass
class Outcome:
    """Kills of one run and the faults that they brought out."""

    kills: int = 0
    faults: list[str] = field(default_factory=list)


class Subject:
    """A command under test, with its undisturbed run.

    Args:
        name: one of `COMMANDS`.
        root: folder for its runs.
    """

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.root = name, root
        self.command, *self.words = COMMANDS[name]
        self.place = "hydra.sweep.dir" if "--multirun" in self.words else "hydra.run.dir"
        self.whole = Place(root / name / "whole")
        begin = time.monotonic()
        done = session(self.whole, self.typed(self.whole))
        self.seconds = {False: time.monotonic() - begin}
        if faults := list(done.faults()):
            raise RuntimeError(f"{name} undisturbed: {faults}\n{done.out}{done.err}")
        if name != "joblib":  # whose workers are fresh processes in any case
            begin, again = time.monotonic(), Place(root / name / "again")
            session(again, self.typed(again), warm=True)
            self.seconds[True] = time.monotonic() - begin
            if found := list(differences(self.whole, again)):
                raise RuntimeError(f"{name} undisturbed, and again: {found}")

    def typed(self, place: Place) -> list[str]:
        """The words of a run in ``place``."""
        return [self.command, *self.words, f"{self.place}={place.run}"]

    def disturbed(self, number: int, seed: int, most: int) -> Outcome:
        """A run that is killed up to ``most`` times, its kills drawn from ``seed`` and ``number``."""
        draw = random.Random(f"{self.name} {seed} {number}")
        place, outcome = Place(self.root / self.name / f"cut-{number}"), Outcome()
        while True:
            resumes = resumable(place.run) and draw.random() < 0.8
            words = [self.command, f"resume={place.run}"] if resumes else self.typed(place)
            kill = outcome.kills < most and (outcome.kills == 0 or draw.random() < AGAIN)
            warm = len(self.seconds) > 1 and draw.random() < WARM
            sent, at, group = draw.choice(SIGNALS), draw.uniform(0, self.seconds[warm]), draw.random() < 0.5
            ended = session(place, words, sent if kill else None, at, group=group, warm=warm)
            told = f"{self.name} {number}: kill {outcome.kills + 1} ({sent.name} at {at:.2f} s, {group=}, {warm=})"
            outcome.faults += [f"{told}: {fault}\n{indented(ended)}" for fault in ended.faults()]
            if ended.sent is None:
                break
            outcome.kills += 1
        if ended.code == 0:
            outcome.faults += [f"{self.name} {number}: {fault}" for fault in differences(self.whole, place)]
        if not outcome.faults:
            shutil.rmtree(place.root)
        return outcome


def indented(ended: Session) -> str:
    """What a process said, below the line of its fault."""
    said = [f"robustcli {' '.join(ended.words)}", *ended.out.splitlines()[-5:], *ended.err.splitlines()[-40:]]
    return "\n".join(f"      {line}" for line in said)


def matrix(names: Sequence[str], root: Path) -> Iterator[str]:
    """Faults of every signal that asks to stop, at each of `MOMENTS` after the start of each command."""
    for name, sent, at in itertools.product(names, SIGNALS[1:], MOMENTS):
        command, *words = COMMANDS[name]
        place = Place(root / f"{name}-{sent.name}-{at}")
        ended = session(place, [command, *words, f"hydra.run.dir={place.run}"], sent, at)
        faults = list(ended.faults()) or [""]
        yield from (f"{name}, {sent.name} at {at} s: {fault}\n{indented(ended)}" if fault else "" for fault in faults)
        shutil.rmtree(place.root)


@contextmanager
def working_folder(kept: Path | None) -> Iterator[Path]:
    """A new folder; removed afterwards unless it was asked for or holds the run of a fault."""
    root = kept or Path(tempfile.mkdtemp(prefix="robustcli-chaos-"))
    root.mkdir(parents=True, exist_ok=True)
    yield root
    if kept is None and not list(root.glob("*/cut-*")):
        shutil.rmtree(root)


def main(arguments: list[str] | None = None) -> int:
    """Kill runs ``--kills`` times and print what did not hold; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--command", choices=COMMANDS, action="append")
    parser.add_argument("--matrix", action="store_true", help="every signal at fixed moments, in place of random kills")
    parser.add_argument("--keep", type=Path, help="folder of the runs, which stays")
    asked = parser.parse_args(arguments)
    _FORKS.set_forkserver_preload(_LIBRARIES)
    joblib = ["joblib"] if find_spec("hydra_plugins.hydra_joblib_launcher") else []
    every = _IN_MATRIX if asked.matrix else [name for name in COMMANDS if name != "joblib"] + joblib
    names = asked.command or every
    kills, failures, begin = 0, 0, time.monotonic()
    with working_folder(asked.keep) as root:
        if asked.matrix:
            for fault in matrix(names, root):
                kills, failures = kills + 1, failures + bool(fault)
                print(fault or ".", end="\n" if fault else "", flush=True)
        else:
            subjects = [Subject(name, root) for name in names]
            for subject in subjects:
                told = ", ".join(f"{seconds:.1f} s{' warm' * warm}" for warm, seconds in subject.seconds.items())
                print(f"{subject.name}: {told} undisturbed", flush=True)
            for number, subject in enumerate(itertools.cycle(subjects)):
                if kills >= asked.kills:
                    break
                outcome = subject.disturbed(number, asked.seed, asked.kills - kills)
                kills, failures = kills + outcome.kills, failures + len(outcome.faults)
                print(f"{subject.name} {number}: {outcome.kills} kills, {len(outcome.faults)} faults", flush=True)
                for fault in outcome.faults:
                    print(fault, flush=True)
    print(f"\n{failures} faults in {kills} kills, in {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
