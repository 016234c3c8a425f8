"""Diagnostics of the robust figures of a table, and transfer rates between its models."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich.console import Console
from torch import Tensor

from robustcli.attacks import (
    ClassifierAttack,
    RetrievalAttack,
    retrieval_transfer_matrix,
    transfer_matrix,
)
from robustcli.attacks.core.passes import Passes
from robustcli.diagnostics import CHECKS, SAMPLES, Finding, Part, diagnose, failed
from robustcli.diagnostics.context import ENSEMBLES, black_box_queries, draws_of, least_passes
from robustcli.evaluation import (
    ClassificationEvaluator,
    Entry,
    Estimate,
    Evaluation,
    Group,
    RetrievalEvaluator,
    SentenceEvaluator,
)
from robustcli.evaluation.aggregate import worst_attack
from robustcli.evaluation.cost import passes_of
from robustcli.evaluation.records import BARE, CLEAN
from robustcli.report.tables import Grid, label_of
from robustcli.runs.run import Run
from robustcli.utils import files
from robustcli.utils.progress import Progress, duration

_FEW_SAMPLES = 16  # of an ensemble's diagnostics, or of a defence's, which would else cost more than the table


def diagnostics_of(
    run: Run,
    evaluation: Evaluation,
    groups: Sequence[Group],
    table: pd.DataFrame,
    records: pd.DataFrame,
    *,
    extent: str,
    share: float | None,
) -> list[Finding]:
    """Diagnostic findings on the robust figures of each model, also written to ``diagnostics.csv``.

    A check that fails is *not run*; one that was done before a kill is not run again.

    Args:
        table: recall of every model under every attack at the radius of the table, see `summarise`.
        records: of the evaluation, which tell what its attacks took.
        extent: ``off``: none; ``auto`` and ``strict``: the worst attack on each model, on which the claim of
            robustness rests, and the first defence only; ``full``: every attack on every model.
        share: of the passes that the attacks of the evaluation took on a model, which its diagnostics may take under
            ``auto``, see ``limit`` of `diagnose`; None: no limit.
    """

    def part(name: str, progress: Progress) -> Part:
        return _part(run, name, progress)

    findings = find_all(evaluation, groups, table, records, extent=extent, share=share, part=part)
    if findings:
        with files.atomic(run.directory / "diagnostics.csv") as path:
            pd.DataFrame([vars(finding) for finding in findings]).to_csv(path, index=False)
    return findings


@dataclass(frozen=True, kw_only=True)
class DiagnosticsCost:
    """What diagnostics will cost, before any attack has run.

    Attributes:
        batteries: figures that are diagnosed; ``images``: the sample of all of them together.
        passes, seconds: forward and backward passes, and their time at the speed that the estimate timed.
        at_most: they are a bound; else about a dozen or two runs of the attack on the sample.
    """

    batteries: int
    images: int
    passes: int
    seconds: float
    at_most: bool

    def __str__(self) -> str:
        figures = f"{self.batteries} figure{'' if self.batteries == 1 else 's'}"
        most = "at most " if self.at_most else "about "
        return (
            f"{len(CHECKS)} checks of {figures} on {self.images:,} images, {most}{self.passes:,} passes: "
            f"{most}{duration(self.seconds)} (diagnostics=off leaves them out)"
        )


_RUNS = 24  # of the attack on the sample, which the checks together come to where nothing limits them


def cost_of(
    evaluation: Evaluation,
    groups: Sequence[Group],
    found: Estimate,
    *,
    extent: str,
    share: float | None,
    times: int = 1,
) -> DiagnosticsCost | None:
    """The cost of `find_all`, ``times`` over, after an evaluation that costs ``found``; None: nothing is diagnosed.

    Which attack is the worst is not known yet, so that ``auto`` counts the one that costs most. The checks that are
    made in any case may pass the bound of a limit by little, see `diagnose`.
    """
    limited, parts = share is not None and extent == "auto", []
    for group, entry in [(each, entry) for each in groups for entry in _diagnosed_entries(each, extent)]:
        names = _diagnosable(evaluation, entry)
        costs = [_battery_passes(evaluation, group, entry, name, found, share if limited else None) for name in names]
        costs = costs if extent == "full" else sorted(costs)[-1:]  # by passes, which come first
        parts += [(*each, found.by_model[entry.label].pass_seconds) for each in costs]
    if not parts or extent == "off":
        return None
    return DiagnosticsCost(
        batteries=times * len(parts),
        images=times * sum(images for _, images, _ in parts),
        passes=times * sum(passes for passes, _, _ in parts),
        seconds=times * sum(passes * each for passes, _, each in parts),
        at_most=limited,
    )


def _battery_passes(
    evaluation: Evaluation, group: Group, entry: Entry, name: str, found: Estimate, share: float | None
) -> tuple[int, int]:
    """Passes of the battery of an attack on an entry, its own run on the sample included, and the images of that."""
    evaluator, run = evaluation.evaluator, evaluation.main_run(name, entry)
    images = min(len(evaluator), _samples(evaluation, group, name))
    spent = passes_of(run, evaluator.problem) or Passes()
    own = images * (spent.forward + spent.backward)
    pixels = evaluator.data.images(evaluator.image_rows[:1]).numel() if evaluation.threat.moves_images else 0
    least = least_passes(images, black_box_queries(pixels, draws_of(run.attack)))
    if share is None:
        return _RUNS * own + least, images
    return own + max(int(share * found.by_model[entry.label].passes) - own, least), images


def _samples(evaluation: Evaluation, group: Group, name: str) -> int:
    return _FEW_SAMPLES if group.defended or isinstance(evaluation.attacks[name], ENSEMBLES) else SAMPLES


def find_all(
    evaluation: Evaluation,
    groups: Sequence[Group],
    table: pd.DataFrame,
    records: pd.DataFrame,
    *,
    extent: str,
    share: float | None,
    part: Callable[[str, Progress], Part] | None = None,
    shown: bool = True,
) -> list[Finding]:
    """`diagnostics_of` without a run to write to.

    Args:
        part: cache of the findings of a number, by its name and the display; None: no cache.
        shown: show the progress.
    """
    if extent == "off":
        return []
    # One battery of further attacks a figure, so the plan decides the cost.
    plan = [
        (group, entry, name)
        for group in groups
        for entry in _diagnosed_entries(group, extent)
        for name in _diagnosed_attacks(evaluation, entry, table, extent)
    ]
    findings: list[Finding] = []
    quiet = None if shown else Console(quiet=True)
    with Progress(len(plan) * len(CHECKS), "diagnostics", unit="checks", console=quiet) as progress:
        for number, (group, entry, name) in enumerate(plan, start=1):
            sources = {each.label: each.model for other in groups for each in other.entries}
            try:
                subject = evaluation.evaluator.subject(entry, _samples(evaluation, group, name))
                attack, keys = evaluation.main_run(name, entry).attack, evaluation.keys.get(name)
                limit = int(share * _passes(records, entry.label)) if share is not None and extent == "auto" else None
                findings += diagnose(
                    subject,
                    attack,
                    model=entry.label,
                    name=name,
                    sources=sources,
                    keys=keys,
                    limit=limit,
                    part=part and part(f"diagnostics/{entry.label}/{name}", progress),
                    show=lambda check: progress.advance(0, check=check),
                )
            except Exception as error:  # all attacking is done: no fault of a diagnosis may lose its results
                findings += failed(error, model=entry.label, name=name)
            progress.advance(number * len(CHECKS) - progress.steps)  # those of one that failed as a whole
    return findings


def coverages(evaluation: Evaluation) -> list[str]:
    """Lines on attacks that edit captions, those alike together: the words and captions that they have edits for."""
    evaluator = evaluation.evaluator
    if not isinstance(evaluator, RetrievalEvaluator | SentenceEvaluator) or not evaluation.threat.moves_texts:
        return []
    names: dict[str, list[str]] = {}
    for name, attack in evaluation.attacks.items():
        text = attack.text if isinstance(attack, RetrievalAttack) else None
        if text is not None and (covered := text.coverage(evaluator.captions)) is not None:
            names.setdefault(str(covered), []).append(label_of(name))
    return [f"{', '.join(alike)}: {covered}." for covered, alike in names.items()]


def transfers(run: Run, evaluation: Evaluation, groups: Sequence[Group], name: str) -> list[Grid]:
    """Success rates of transferred adversarial examples of the attack ``name``, also written to ``transfer.csv``.

    One grid a direction, sources as rows and targets as columns. The attack runs once on every model; its examples are
    then judged on all of them. A dual encoder's queries are ranked within their chunk, not in the whole gallery.
    """
    evaluator, attack, parts = evaluation.evaluator, evaluation.attacks[name], []
    models = {entry.label: entry.model for group in groups for entry in group.entries}
    with Progress(len(evaluator), f"transfer: {name}", unit=evaluator.unit) as progress:
        for rows in evaluator.chunks():
            parts.append(_chunk_transfers(evaluation, attack, models, rows))
            progress.advance(len(rows))
    keys = ["direction", "source", "target"]
    table = pd.concat(parts).groupby(keys, sort=False)[["samples", "successes"]].sum().reset_index()
    table["success_rate"] = table["successes"] / table["samples"].where(table["samples"] > 0)
    with files.atomic(run.directory / "transfer.csv") as path:
        table.to_csv(path, index=False)
    return [_transfer_grid(str(direction), part, name) for direction, part in table.groupby("direction", sort=False)]


def _passes(records: pd.DataFrame, label: str) -> int:
    """Forward and backward passes that all attacks of the evaluation took on the model ``label``."""
    own = records[(records["model"] == label) & (records["attack"] != CLEAN)]
    copied = (own["access"] == "static") & (own["defence"] != BARE)  # what was computed on the bare model
    return int(own.loc[~copied, ["queries", "gradients"]].sum().sum())


def _part(run: Run, name: str, progress: Progress) -> Part:
    """Cache of findings among the parts of ``run``."""

    def part(check: str, compute: Callable[[], Finding]) -> Finding:
        # A failure may pass (out of memory): a resumed run tries again.
        table = run.records_part(
            f"{name}/{check}",
            lambda: pd.DataFrame([vars(compute())]),
            keep=lambda table: not table["failed"].any(),
        )
        progress.advance(1)
        return Finding(**{str(name): value for name, value in table.to_dict("records")[0].items()})

    return part


def _diagnosed_entries(group: Group, extent: str) -> Sequence[Entry]:
    """Entries of the group to diagnose: the model alone, or the defences in front of it."""
    if not group.defended:
        return [group.bare]
    return group.defended if extent == "full" else group.defended[:1]


def _diagnosed_attacks(evaluation: Evaluation, entry: Entry, table: pd.DataFrame, extent: str) -> list[str]:
    """Names of the attacks to diagnose on an entry; for a defence those bounded by a radius, if there are any."""
    names = _diagnosable(evaluation, entry)
    if entry.defence != "none":
        table = table[table["access"] == "adaptive"]
    if extent == "full":
        return names
    worst = worst_attack(table[table["attack"].isin(names)], entry.label)
    return [] if worst is None else [worst]


def _diagnosable(evaluation: Evaluation, entry: Entry) -> list[str]:
    names = list(evaluation.attacks)
    if entry.defence == "none":
        return names
    return [name for name in names if not evaluation.is_minimum_norm(name)] or names


def _chunk_transfers(evaluation: Evaluation, attack: Any, models: Mapping[str, Any], rows: Tensor) -> pd.DataFrame:
    evaluator, first, threat = evaluation.evaluator, next(iter(models.values())), evaluation.threat
    if isinstance(evaluator, RetrievalEvaluator):
        assert isinstance(attack, RetrievalAttack)
        return retrieval_transfer_matrix(attack, models, evaluator.pairs(first, rows)[0], threat)
    if isinstance(evaluator, SentenceEvaluator):
        assert isinstance(attack, RetrievalAttack)
        matrix = retrieval_transfer_matrix(attack, models, evaluator.pairs(first, rows)[0], threat)
        return matrix[matrix["direction"] == "text_to_image"].assign(direction=evaluator.directions[0])
    assert isinstance(evaluator, ClassificationEvaluator) and isinstance(attack, ClassifierAttack)
    images, labels = evaluator.batch(first, rows)
    matrix = transfer_matrix(attack, models, images, labels, threat, sample_ids=rows)
    return matrix.assign(direction=evaluator.directions[0])


def _transfer_grid(direction: str, table: pd.DataFrame, attack: str) -> Grid:
    names = list(dict.fromkeys(table["source"]))
    cells = {
        (row["source"], row["target"]): f"{100 * row['success_rate']:.1f}\nof {row['samples']}"
        if row["samples"]
        else "-"
        for row in table.to_dict("records")
    }
    rows = [[source, *(cells[source, target] for target in names)] for source in names]
    title = f"Transfer of {attack} in percent, {direction.replace('_', ' ')}: computed on (row), judged on (column)"
    return Grid(title, ["", *names], rows, "Of the queries that both models answer rightly without attack.")
