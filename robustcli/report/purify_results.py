"""What a judged purification leaves in the run directory: records, metrics, diagnostics, pictures and the report."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import torch
from omegaconf import DictConfig
from torch import Tensor

from robustcli.attacks import ClassifierAttack
from robustcli.defenses import PurifiedClassifier, Purifier
from robustcli.diagnostics import ClassifierSubject, Finding, diagnose, refuse_suspects
from robustcli.evaluation.bounds import WORST, paper_table, robust_table
from robustcli.evaluation.purification import BARE, PurificationJudge
from robustcli.report.diagnostics import diagnostics_grid, print_findings
from robustcli.report.markdown import Report, render, threat_model
from robustcli.report.purification import (
    NO_ADAPTIVE,
    Strip,
    access_grid,
    accuracy_over_bound,
    masked,
    paper_grid,
    strict_grid,
    strips,
)
from robustcli.report.tables import Grid, print_grid
from robustcli.runs.run import Run
from robustcli.utils import files
from robustcli.utils.progress import Progress

_SHOWN = 5  # images of a picture
_CHECKED = 16  # images of the diagnostics, each of whose checks is an attack of its own
_FIGURES = ("accuracy", "accuracy_low", "accuracy_high")
_NORMS = {"l2": "L2", "linf": "L-inf"}


def write_purification(run: Run, judge: PurificationJudge, records: pd.DataFrame, config: DictConfig) -> float:
    """Write all of it and print the tables; returns the first defence's accuracy under the worst attack at the bound.

    Raises:
        SuspectClaim: a number is suspect, under ``diagnostics=strict``; all is written by then.
    """
    protocol, resamples = judge.protocol, config.evaluation.resamples
    table = robust_table(records, protocol.bounds, resamples=resamples, seed=protocol.seed)
    claimed = paper_table(records, protocol.bounds, resamples=resamples, seed=protocol.seed)
    run.write_records(records)
    run.write_metrics(_flat(table), table)
    bound, norm = protocol.bound, _NORMS[_any_attack(judge).norm]
    grids = [access_grid(table, bound, norm=norm), strict_grid(table, protocol.bounds)]
    grids += [paper_grid(claimed, protocol.bounds)] if len(claimed) else []
    findings = _findings(run, judge, bound, config.diagnostics)
    figures = _figures(run, judge, table, bound, norm)
    warnings = ([] if "adaptive" in protocol.access else [NO_ADAPTIVE]) + masked(table, protocol.bounds, norm=norm)
    report = Report(
        title="Purification",
        summary="\n\n".join(f"**{sentence}**" for sentence in warnings),
        threat=_threat(judge, bound, norm),
        tables=[*grids, *([diagnostics_grid(findings)] if findings else [])],
        figures=figures,
        caveats=_caveats(judge, records),
    )
    run.write_report(render(report, run.manifest, run.directory))
    _print(grids, warnings, findings)
    if config.diagnostics == "strict":
        refuse_suspects(findings)
    return _accuracy(table, next(iter(judge.defences), BARE), bound)


def _accuracy(table: pd.DataFrame, model: str, bound: float) -> float:
    worst = table[(table["attack"] == WORST) & (table["access"] == WORST) & (table["verdict"] == "mean")]
    return float(worst[(worst["model"] == model) & (worst["bound"] == bound)]["accuracy"].iloc[0])


def _flat(table: pd.DataFrame) -> dict[str, float]:
    """``<defence>/<access>/<attack>/<bound>/<verdict>/accuracy`` with its interval."""
    flat: dict[str, float] = {}
    for row in table.to_dict("records"):
        bound = "any" if pd.isna(row["bound"]) else f"{row['bound']:g}"
        key = "/".join([str(row["model"]), str(row["access"]), str(row["attack"]), bound, str(row["verdict"])])
        flat |= {f"{key}/{name}": float(row[name]) for name in _FIGURES if not pd.isna(row[name])}
    return flat


def _any_attack(judge: PurificationJudge) -> ClassifierAttack:
    return next(attack for _, _, attack in judge.protocol.runs())


def _findings(run: Run, judge: PurificationJudge, bound: float, extent: str) -> list[Finding]:
    """The diagnostics of the adaptive attack on the first defence, that of the bound if there is one."""
    chosen = _bounded(judge, bound)
    if extent == "off" or chosen is None or "adaptive" not in judge.protocol.access:
        return []
    name, attack = chosen
    labels = list(judge.defences) if extent == "full" else list(judge.defences)[:1]
    rows = torch.linspace(0, len(judge.rows) - 1, min(_CHECKED, len(judge.rows))).long()
    images, classes = judge.batch(rows)
    findings: list[Finding] = []
    with Progress(len(labels), "diagnostics", unit="numbers") as progress:
        for label in labels:
            defence = judge.defences[label]
            adaptive = judge.averaged(attack, defence)
            subject = ClassifierSubject(defence, images, classes, rows)
            sources = {BARE: judge.classifier}
            findings += diagnose(subject, adaptive, model=label, name=f"adaptive {name}", sources=sources)
            progress.advance(1)
    with files.atomic(run.directory / "diagnostics.csv") as path:
        pd.DataFrame([vars(finding) for finding in findings]).to_csv(path, index=False)
    return findings


def _bounded(judge: PurificationJudge, bound: float) -> tuple[str, ClassifierAttack] | None:
    """The last attack that keeps within the bound."""
    found = [(name, by_bound[bound]) for name, by_bound in judge.protocol.attacks.items() if bound in by_bound]
    return found[-1] if found else None


def _figures(run: Run, judge: PurificationJudge, table: pd.DataFrame, bound: float, norm: str) -> list[tuple[str, Any]]:
    curve = run.figure("accuracy_over_bound")
    accuracy_over_bound(table, curve, norm=norm)
    drawn = [("Accuracy over the bound: under the worst attack of each image, and under the worst static one.", curve)]
    rows = torch.linspace(0, len(judge.rows) - 1, min(_SHOWN, len(judge.rows))).long()
    for label, defence in judge.defences.items():
        path = run.figure(f"strips_{_file(label)}")
        strips(_strips(judge, label, defence, rows, bound), path, title=f"{label}, changes up to {norm} {bound:g}")
        drawn.append((f"{label}: what comes in, what goes on to the classifier, and what was thrown away.", path))
        if isinstance(defence.cleaner, Purifier):
            path = run.figure(f"latents_{_file(label)}")
            strips(_sweep(judge, defence.cleaner, rows), path, title="latents drawn anew, from the finest up")
            drawn.append((f"{label}: the coarsest latents kept, the others drawn anew.", path))
    return drawn


@torch.no_grad()
def _strips(
    judge: PurificationJudge, label: str, defence: PurifiedClassifier, rows: Tensor, bound: float
) -> list[Strip]:
    """Clean, attacked and cleaned images; the attack within the bound, or the first there is."""
    images, _ = judge.batch(rows)
    name, attack = _bounded(judge, bound) or next((name, attack) for name, _, attack in judge.protocol.runs())
    torch.manual_seed(judge.protocol.seed)
    stages = {"clean": images, "clean, cleaned": defence.cleaner(images)}
    for access in ("static", *({"adaptive"} & set(judge.protocol.access))):
        found = judge.attacked(label, attack, access, rows)[0]
        cleaned = defence.cleaner(found)
        stages |= {f"{access} {name}": found, f"{access},\ncleaned": cleaned}
        stages |= {f"{access},\nthrown away": (0.5 + (found - cleaned)).clamp(0, 1)}
    says = {stage: _says(judge, pictures, stage) for stage, pictures in stages.items()}
    classes = [judge.data.classes[i] for i in judge.data.labels[rows].tolist()]
    return [
        Strip(label, {stage: (pictures[place].cpu(), says[stage][place]) for stage, pictures in stages.items()})
        for place, label in enumerate(classes)
    ]


def _says(judge: PurificationJudge, images: Tensor, stage: str) -> list[str]:
    """What the bare classifier says of images (B,C,H,W); of what was thrown away, nothing."""
    if "thrown" in stage:
        return [""] * len(images)
    return [judge.data.classes[i] for i in judge.classifier(images.clamp(0, 1)).argmax(1).tolist()]


@torch.no_grad()
def _sweep(judge: PurificationJudge, purifier: Purifier, rows: Tensor) -> list[Strip]:
    """Each image with only its k coarsest latents kept, for k from all to none, under the same noise."""
    images, _ = judge.batch(rows)
    features = purifier.generator.encode(images)
    count = len(purifier.generator.latent_shapes)
    noise = purifier.named_noise(rows.tolist(), images, seed=judge.protocol.seed)[-count:]
    kept = sorted({round(count * share / 6) for share in range(7)}, reverse=True)
    stages = {"clean": images}
    for number in kept:
        alphas = (torch.arange(count) >= number).to(images)
        stages[f"{number} of {count} kept"] = purifier.generator.decode(features, alphas, noise)
    says = {stage: _says(judge, pictures, stage) for stage, pictures in stages.items()}
    return [
        Strip(
            judge.data.classes[int(judge.data.labels[row])],
            {stage: (pictures[place].cpu(), says[stage][place]) for stage, pictures in stages.items()},
        )
        for place, row in enumerate(rows.tolist())
    ]


def _threat(judge: PurificationJudge, bound: float, norm: str) -> list[str]:
    model = threat_model(norm=_any_attack(judge).norm, eps=f"{bound:g}", captions=False)[0]
    return [
        model,
        "static: the attacker knows the classifier and nothing of what stands in front of it.",
        "BPDA: the attacker runs the defence, but takes the cleaner's gradient for the identity.",
        "adaptive: the attacker knows all weights and averages gradients over draws, but not the draws of the verdict.",
        f"Every image is judged on {judge.protocol.fresh} fresh answers of a defence that draws.",
    ]


def _caveats(judge: PurificationJudge, records: pd.DataFrame) -> list[str]:
    notes = [
        f"{len(judge.rows)} images of {judge.data.name}; one that is wrong without attack is wrong under it.",
        "A robust figure is an upper bound: a stronger attack can only lower it.",
        "DeepFool, C&W and their like stand with the smallest changes that they found; the worst also counts those "
        "followed on in their direction to the bound.",
        *_draws(judge.defences),
    ]
    if {"zero_gradients", "nan_gradients"} <= set(records):
        own = records[(records["access"] != "static") | (records["model"] == BARE)]  # of static, each model has a copy
        broken = own[["zero_gradients", "nan_gradients"]].fillna(0).sum()
        if broken.sum() > 0:
            notes.append(
                f"SUSPECT: {int(broken['zero_gradients'])} gradients were all zero and {int(broken['nan_gradients'])} "
                "held a NaN: the gradient attacks were blind there, and their figures flatter."
            )
    return notes


def _draws(defences: Mapping[str, PurifiedClassifier]) -> list[str]:
    random = {name: defence for name, defence in defences.items() if defence.randomised}
    return [f"{name}: an answer is the mean of {defence.draws} draws." for name, defence in random.items()]


def _print(grids: list[Grid], warnings: list[str], findings: list[Finding]) -> None:
    from rich.console import Console

    for grid in grids[:1]:
        print_grid(grid)
    for sentence in warnings:
        Console().print(sentence, style="bold red", markup=False)
    if findings:
        print_findings(findings)


def _file(label: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "._+=-" else "_" for letter in label)
