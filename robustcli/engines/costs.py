"""What a command will cost, told before its long work starts, and how many images a budget of minutes pays for."""

import os
from collections.abc import Sequence

import torch
from omegaconf import DictConfig

from robustcli.attacks.core.passes import Passes
from robustcli.evaluation import Estimate, Evaluation, Group, estimate
from robustcli.report.diagnose import cost_of
from robustcli.runs.run import Run
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import UserError
from robustcli.utils.progress import duration

_SHORT = 20  # steps of a training that is over before a few of them are timed


def judge_within(
    run: Run, config: DictConfig, evaluation: Evaluation, groups: Sequence[Group], *, times: int = 1
) -> Estimate:
    """Print what judging ``groups`` ``times`` over will cost, cut the images to what ``evaluation.budget_minutes`` pays
    for, and keep both in the manifest.

    The number of images is chosen once: a resumed run keeps that of its first session, whatever the machine does now.

    Raises:
        UserError: the budget does not pay for one image.
    """
    minutes, kept = config.evaluation.budget_minutes, run.manifest.get("budget")
    processes = config.get("processes", 1)
    ways = ways_of(processes, device_of(groups), config.threads)
    with run.phase("load"):  # where a mistake leaves no directory behind
        found = estimate(evaluation, groups, times=times).shared(ways)
        if minutes is not None:
            count = int(kept["images"]) if kept else found.affordable(minutes)
            if not count:
                one, unit = f"{found.seconds / found.images:.2g} s", found.unit.removesuffix("s")
                raise UserError(
                    f"evaluation.budget_minutes is {minutes:g}, but one {unit} takes {one} under these attacks: give "
                    "it more, or take fewer attacks, such as attacks=quick."
                )
            if count < found.images:
                evaluation.evaluator.shorten(count, _shortened(count, found, minutes))
                found = estimate(evaluation, groups, times=times).shared(ways)
            run.note(budget={"minutes": minutes, "images": count})
    shared = f" in {processes} processes, {ways} at a time" if processes > 1 else ""
    _tell(
        run, "judge", str(found) + shared + (f" (evaluation.budget_minutes={minutes:g})" if minutes is not None else "")
    )
    run.note(estimate={"judge": found.seconds})
    extent, share = config.diagnostics.extent, config.diagnostics.share
    if (beside := cost_of(evaluation, groups, found, extent=extent, share=share, times=times)) is not None:
        _tell(run, "diagnostics", str(beside))
        run.note(estimate={"diagnostics": beside.seconds})
    return found


def ways_of(processes: int, device: torch.device, threads: int) -> int:
    """How many of ``processes`` this machine lets work at a time: one a GPU, or so many that each has its threads."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    most = torch.cuda.device_count() if device.type == "cuda" else cores // threads
    return max(1, min(processes, most))


def device_of(groups: Sequence[Group]) -> torch.device:
    """Where the models are; the CPU where one does not say."""
    models = (entry.model for group in groups for entry in group.entries)
    return getattr(next(models, None), "device", torch.device("cpu"))


def _shortened(count: int, found: Estimate, minutes: float) -> str:
    first = f"Judged on the first {count:,} of {found.images:,} {found.unit}"
    return f"{first}, which is what evaluation.budget_minutes={minutes:g} pays for."


def tell_training(run: Run, trainer: Trainer, unit: str) -> None:
    """Print the steps of a training and the time that a few timed ones make of them; call after `Trainer.prepare`."""
    left = trainer.training.steps - trainer.step
    said = f"{left:,} steps of {trainer.samples_per_step:,} {unit}"
    if left > _SHORT:
        each = trainer.training.step_seconds or trainer.seconds_of_a_step()
        said += f": about {duration(left * each)} by timed steps, validations aside"
        run.note(estimate={"train": left * each})
    _tell(run, "train", said)


def tell_passes(run: Run, name: str, said: str, passes: Passes, seconds: float) -> None:
    """Print what a search that is no evaluation will cost: ``passes``, which take ``seconds`` in all."""
    counted = f"{passes.forward:,} forward and {passes.backward:,} backward passes"
    _tell(run, name, f"{said}, {counted}: about {duration(seconds)} by timed passes")
    run.note(estimate={name: seconds})


def _tell(run: Run, name: str, said: str) -> None:
    again = " (in all, with what was done before)" if run.resumed and name != "train" else ""
    print(f"{name}: {said}{again}", flush=True)
    run.log.info("%s: %s", name, said)
