"""`robustcli purify`: clean images in front of an untouched classifier, and judge that against all attackers."""

import pandas as pd
from omegaconf import DictConfig

from robustcli.builders.defences import build_defences, build_protocol, check_draws
from robustcli.builders.models import build_classes, build_classifier, choose_device
from robustcli.defenses import PurifiedClassifier
from robustcli.engines.loading import check_weights
from robustcli.evaluation.purification import PurificationJudge
from robustcli.report.purify_results import write_purification
from robustcli.runs.run import Run
from robustcli.utils.progress import Progress


def run(config: DictConfig, run: Run) -> float:
    """Judge the defences; returns the accuracy of the first under the worst attack at ``protocol.bound``."""
    device = choose_device(config.device, config.threads)
    with run.phase("load"):
        protocol = build_protocol(config.protocol, seed=config.seed)
        data = build_classes(config.dataset, config.evaluation.split)
        check_weights(config, {"model": config.checkpoint})
        classifier = build_classifier(config.model, config.checkpoint, data, seed=config.seed).to(device)
        in_front = build_defences(config, data, device)
        defences: dict[str, PurifiedClassifier] = {name: put(classifier) for name, put in in_front.items()}
        check_draws(defences, config)
    run.note(device=str(device))
    run.note_inputs(
        data={data.split: data.provenance()},
        weights={
            "classifier": classifier.fingerprint(),
            **{name: defence.fingerprint() for name, defence in defences.items()},
        },
    )
    settings = config.evaluation
    judge = PurificationJudge(
        data, classifier, defences, protocol, batch_size=settings.batch_size, limit=settings.limit
    )
    with run.phase("judge"):
        records = _judged(run, judge)
    with run.phase("report"):
        return write_purification(run, judge, records, config)


def _judged(run: Run, judge: PurificationJudge) -> pd.DataFrame:
    with Progress(judge.steps, "purify", unit="images") as progress:

        def show(name: str, images: int) -> None:
            progress.advance(1, samples=images)

        judge.on_step = show
        return judge.records(part=run.records_part)
