"""An evaluation by two processes against one, and what `verify` costs beside the attack whose inputs it judges again.

The first is wall time, with the start of the processes taken off: two evaluations of different size, by one process and
by two, in turn. It tells something where two cores are free. The second is CPU time of this process: of the judging
alone, and of what both load before (config, data, model), which stands in a row of its own.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

from benchmarks.report import Row, cpu_seconds_once
from robustcli.cli.job import engine_of
from robustcli.cli.launch import launch
from robustcli.cli.validate import as_job
from robustcli.config.compose import compose
from robustcli.engines.verify import verify
from robustcli.runs.finished import load_run

SPEED_UP = 1.9  # of two processes
SHARE = 0.01  # of the attack
_DIGITS = ("dataset=digits", "model=digits", "threat=image", "diagnostics=off", "device=cpu", "evaluation.split=train")
_APGD = (*_DIGITS, "attack=apgd", "attack.restarts=5", "evaluation.batch_size=16")
_PAIRS = (
    "attack=sga",
    "dataset.train=16",
    "dataset.val=16",
    "diagnostics=off",
    "evaluation.eps_curve=[]",
    "device=cpu",
)


def run(*, quick: bool = False) -> list[Row]:
    """Two processes against one; verify against AutoAttack on digits and against SGA on scenes, at growing numbers."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        rows = [_side_by_side(place / "processes", quick=quick)]
        for images in (2,) if quick else (32, 128):
            rows += _verified("digits, AutoAttack", (*_DIGITS, "attack=autoattack"), images, place / f"digits{images}")
        for images in () if quick else (32, 128):
            rows += _verified("scenes, SGA", (*_PAIRS, f"dataset.test={images}"), images, place / f"scenes{images}")
        return rows


def _side_by_side(place: Path, *, quick: bool) -> Row:
    """Wall seconds of the larger evaluation less those of the smaller, by one process and by two."""
    sizes, rounds = ((4, 8), 1) if quick else ((64, 576), 3)
    seconds: dict[tuple[int, int], list[float]] = {}
    for number in range(rounds):
        for images in sizes:
            for processes in (1, 2):
                words = (*_APGD, f"evaluation.limit={images}", f"processes={processes}")
                begin = time.perf_counter()
                _attack(words, place / f"{number}-{images}-{processes}")
                seconds.setdefault((images, processes), []).append(time.perf_counter() - begin)
    medians = {key: statistics.median(values) for key, values in seconds.items()}
    one, two = (max(medians[sizes[1], count] - medians[sizes[0], count], 1e-9) for count in (1, 2))
    start = medians[sizes[0], 2] - two * sizes[0] / (sizes[1] - sizes[0])
    free = len(os.sched_getaffinity(0)) - os.getloadavg()[0]
    return Row(
        what=f"APGD on {sizes[1] - sizes[0]} digits, 2 processes",
        against="1 process",
        ours=two,
        other=one,
        at_least=SPEED_UP,
        note=f"wall; the processes start in {start:.1f} s; {free:.1f} cores were free",
    )


def _verified(name: str, words: Sequence[str], images: int, place: Path) -> list[Row]:
    """CPU seconds of verify against those of the attack, both without what they load; and of that."""
    _attack((*words, f"evaluation.limit={images}"), place)
    run = load_run(place)
    config = compose("attack", run.overrides, run.overrides, with_hydra=True)
    with as_job(config), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        loading = cpu_seconds_once(lambda: engine_of("attack").load(config))
        loaded = engine_of("attack").load(config)
        judging = cpu_seconds_once(lambda: verify(place, run.manifest, run.records, loaded))
        runs = [each for group in loaded.groups for each in loaded.evaluation.runs(group)]
        attacking = cpu_seconds_once(lambda: [loaded.evaluation.evaluator.attacked(each) for each in runs])
    return [
        Row(
            what=f"judging of verify, {images} x {name}",
            against="the attack",
            ours=judging,
            other=attacking,
            at_most=SHARE,
            note=f"{len(run.records):,} records",
        ),
        Row(what=f"start of verify, {images} x {name}", against="its judging", ours=loading, other=judging),
    ]


def _attack(words: Sequence[str], place: Path) -> None:
    """`robustcli attack` to its end; its display is not shown.

    Raises:
        RuntimeError: it failed; with what it said.
    """
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()) as said:
        code = launch("attack", [*words, f"hydra.run.dir={place}"])
    if code:
        raise RuntimeError(f"robustcli attack {' '.join(words)} ended with {code}: {said.getvalue()[-500:]}")
