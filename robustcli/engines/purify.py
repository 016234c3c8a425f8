"""`robustcli purify`: purification in front of an untouched classifier, evaluated under static to adaptive attacks."""

from omegaconf import DictConfig

from robustcli.builders.data import build_classes
from robustcli.builders.defences import build_defences, check_draws
from robustcli.builders.device import choose_device, on_device
from robustcli.builders.evaluation import build_attacks, build_evaluation
from robustcli.builders.models import build_class_texts, build_surrogate, build_trained, refuse_unread_texts
from robustcli.config.unread import refuse_unread
from robustcli.engines.costs import judge_within
from robustcli.engines.loading import Loaded, collect_records
from robustcli.evaluation import BARE, Group
from robustcli.models import Classifier
from robustcli.report.results import worst_case_recall, write_results
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
    return Loaded(device, data, [Group(bare=entry(BARE, classifier), defended=defended)], evaluation)


def run(config: DictConfig, run: Run) -> float:
    """Evaluate the defences; returns the accuracy of the first under the worst attack at ``threat.eps``."""
    with run.phase("load"):
        loaded = load(config)
    loaded.note(run)
    cost = judge_within(run, config, loaded.evaluation, loaded.groups)
    with run.phase("judge"):
        records = collect_records(run, loaded.evaluation, loaded.groups, cost, loaded.keep(config, run), config=config)
    with run.phase("report"):
        table = write_results(
            run,
            loaded.evaluation,
            loaded.groups,
            records,
            title="Purification",
            diagnostics=config.diagnostics.extent,
            share=config.diagnostics.share,
        )
    group = loaded.groups[0]
    return worst_case_recall(table, group.defended[0] if group.defended else group.bare)
