"""`robustcli purify`: purification in front of an untouched classifier, evaluated under static to adaptive attacks."""

from typing import Any

import pandas as pd
from omegaconf import DictConfig

from robustcli.builders.data import build_classes
from robustcli.builders.defences import build_defences, check_draws
from robustcli.builders.device import choose_device, on_device
from robustcli.builders.evaluation import build_attacks, build_evaluation, build_smoothing
from robustcli.builders.models import build_class_texts, build_surrogate, build_trained, refuse_unread_texts
from robustcli.config.unread import refuse_unread
from robustcli.defenses import PurifiedClassifier
from robustcli.engines.costs import judge_within
from robustcli.engines.loading import Loaded, collect_records
from robustcli.evaluation import BARE, ClassificationEvaluator, Group
from robustcli.evaluation.smoothing import ABSTAINED, Smoothing, certified_accuracy
from robustcli.models import Classifier
from robustcli.report.defences import certified_grid
from robustcli.report.results import worst_case_recall, write_results
from robustcli.report.tables import Grid
from robustcli.runs.run import Run


def load(config: DictConfig) -> Loaded:
    """Data, the classifier bare and behind each defence, and the evaluation.

    Raises:
        UserError: random weights, or parts that do not fit together.
    """
    device = choose_device(config.device, config.threads)
    data = build_classes(config.dataset, config.evaluation.split)
    attacks = build_attacks(config, data, None)
    refuse_unread("evaluation.before", "nothing is trained, so that there is no model before")
    if not attacks:
        refuse_unread("threat", "no attack is run: choose attacks=...")
    texts = build_class_texts(config, data)
    surrogate = build_surrogate(config, data, device, texts)
    classifier = build_trained(config.model, config.checkpoint, data, seed=config.seed, texts=texts)
    classifier = on_device(classifier, device, "model")
    refuse_unread_texts([classifier, surrogate])
    assert isinstance(classifier, Classifier)
    evaluation = build_evaluation(config, data, attacks, models=[classifier], surrogate=surrogate, defended=True)
    defences = {name: defend(classifier) for name, defend in build_defences(config, data, device).items()}
    check_draws(defences, config)
    entry = evaluation.evaluator.entry
    defended = tuple(entry(name, defence, name) for name, defence in defences.items())
    build_smoothing(config)
    return Loaded(device, data, [Group(bare=entry(BARE, classifier), defended=defended)], evaluation)


def run(config: DictConfig, run: Run) -> float:
    """Evaluate the defences; returns the accuracy of the first under the worst attack at ``threat.eps``."""
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    cost = judge_within(run, config, loaded.evaluation, loaded.groups)
    with run.phase("judge"):
        records = collect_records(run, loaded.evaluation, loaded.groups, cost, loaded.keep(config, run), config=config)
    smoothing, proven = build_smoothing(config), None
    metrics: dict[str, float] = {}
    if smoothing is not None:
        with run.phase("certify"):
            proven, metrics = _certified(run, loaded, smoothing, config)
    with run.phase("report"):
        table = write_results(
            run,
            loaded.evaluation,
            loaded.groups,
            records,
            title="Purification",
            metrics=metrics,
            proven=proven,
            diagnostics=config.diagnostics.extent,
            share=config.diagnostics.share,
        )
    group = loaded.groups[0]
    return worst_case_recall(table, group.defended[0] if group.defended else group.bare)


def _certified(run: Run, loaded: Loaded, smoothing: Smoothing, config: DictConfig) -> tuple[Grid, dict[str, float]]:
    """Certificates of the bare model, and of its defences where asked for: their table and metrics."""
    group, evaluation = loaded.groups[0], loaded.evaluation
    evaluator, tables = evaluation.evaluator, {}
    assert isinstance(evaluator, ClassificationEvaluator)
    for entry in group.entries if config.certify.defences else [group.bare]:
        model = entry.model
        if isinstance(model, PurifiedClassifier):  # one draw each: the certificate is of the vote over both
            model = PurifiedClassifier(model.classifier, model.cleaner, memory=model.memory).eval()

        def compute(model: Any = model) -> pd.DataFrame:
            parts = []
            for rows in evaluator.chunks():
                parts.append(smoothing.certify(model, *evaluator.batch(model, rows), rows.tolist(), seed=config.seed))
            return pd.concat(parts, ignore_index=True)

        tables[entry.label] = run.records_part(f"certify/{entry.label}", compute)
    radii = sorted({evaluation.threat.ball.eps, *evaluation.radii})
    metrics: dict[str, float] = {}
    for label, table in tables.items():
        metrics |= {f"{label}/certified@{eps:g}": certified_accuracy(table, eps) for eps in radii}
        metrics |= {f"{label}/abstained": float((table["predicted"] == ABSTAINED).mean())}
    return certified_grid(tables, radii, sigma=smoothing.sigma, alpha=smoothing.alpha), metrics
