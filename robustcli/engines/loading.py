"""Loading and evaluation of models, shared by the engines."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from robustcli.attacks import Attack, CandidateSource
from robustcli.builders.attacks import BuiltAttack, Candidates
from robustcli.builders.candidates import lazy_candidates
from robustcli.builders.data import build_data
from robustcli.builders.defences import build_purified, check_draws
from robustcli.builders.device import choose_device, on_device
from robustcli.builders.evaluation import build_attacks, build_evaluation
from robustcli.builders.models import build_class_texts, build_surrogate, build_trained, refuse_unread_texts, texts_of
from robustcli.builders.names import refuse_repeated
from robustcli.config.unread import refuse_unread
from robustcli.data import ClassTexts, ImageClassData, ImageTextData, Sentences
from robustcli.engines.processes import attack_in_processes
from robustcli.evaluation import AttackRun, Estimate, Evaluation, Group
from robustcli.evaluation.evaluator import Keep
from robustcli.evaluation.stored import Stored
from robustcli.models import Classifier, DualEncoder
from robustcli.runs.run import Run
from robustcli.utils.errors import UserError
from robustcli.utils.progress import Part, Progress

Data = ImageTextData | ImageClassData
Model = DualEncoder | Classifier


# A key of `model` within a sentence, and no file such as model.safetensors.
_KEY_OF_MODEL = re.compile(r"(?<![\w./-])(?:model\.(?!(?:safetensors|pth?|bin)\b)(?=[a-z_])|(?=checkpoint=FILE))")


@dataclass(frozen=True)
class NamedModel:
    """A model to build: its config, a file of weights (None: those of the config), and its key if it is of several."""

    config: DictConfig
    checkpoint: str | None
    key: str = ""


@dataclass(frozen=True)
class Loaded:
    """Models to evaluate, each bare and behind its defences, with data and evaluation."""

    device: torch.device
    data: Data
    groups: list[Group]
    evaluation: Evaluation

    def note(self, run: Run) -> None:
        """Write device and fingerprints of data, weights and word sources to the manifest of ``run``.

        Raises:
            UserError: a resumed run reads another of them than it began with.
        """
        run.note(device=str(self.device))
        note_class_texts(run, [group.bare.model for group in self.groups])
        run.note_inputs(**self.fingerprints())

    def fingerprints(self) -> dict[str, Any]:
        """Fingerprints of data, weights and word sources, as the manifest has them."""
        weights = {entry.label: entry.model.fingerprint() for group in self.groups for entry in group.entries}
        surrogate = self.evaluation.attacker.surrogate
        if surrogate is not None:
            weights["evaluation.surrogate"] = surrogate.fingerprint()
        return {
            "data": {self.data.split: self.data.provenance()},
            "weights": weights,
            "candidates": candidate_fingerprints(self.evaluation.attacks),
        }

    def keep(self, config: DictConfig, run: Run) -> Keep | None:
        """What writes adversarial inputs to the directory of ``run``, where ``evaluation.keep_inputs`` asks for it."""
        if not config.evaluation.keep_inputs:
            return None
        return Stored(run.directory, self.evaluation, self.groups).keep


def note_class_texts(run: Run, models: Iterable[object]) -> None:
    """Write the texts by which dual encoders classify to the manifest: names, templates and where these are from."""
    for model in models:
        if (texts := texts_of(model)) is not None:
            names, templates = list(texts.names), list(texts.templates)
            run.note(class_texts={"names": names, "templates": templates, "origin": texts.origin})
            return  # those of one command are the same for all models


def load_models(config: DictConfig, named: Mapping[str, NamedModel], *, attack: str | None) -> Loaded:
    """The evaluated split, the models, each also behind ``purifier`` if there is one, and the evaluation.

    Args:
        named: the models by their labels in the table.
        attack: name of the attack of ``attack=...`` in tables, see `attack_name`; None: the suite alone.

    Raises:
        UserError: random weights, or parts that do not fit together.
    """
    if config.purifier is not None:
        refuse_repeated([*named, *map(_behind_purifier, named)])
    device = choose_device(config.device, config.threads)
    data = build_data(config.dataset, config.evaluation.split)
    if config.purifier is not None and isinstance(data, Sentences):
        raise UserError(
            f"purifier is chosen, but the data set {data.name} has sentences and no image to clean: leave it out."
        )
    texts = build_class_texts(config, data)
    models = {label: on_device(built(each, data, config.seed, texts), device, "model") for label, each in named.items()}
    defend = build_purified(config.purifier, data, device) if config.purifier is not None else None
    attacks = build_attacks(config, data, _candidates(config, data, models), name=attack, another="attack={0}")
    _refuse_unread(config, attacks, several=len(models) > 1 or defend is not None)
    surrogate = build_surrogate(config, data, device, texts)
    if texts is not None:
        refuse_unread_texts([*models.values(), surrogate])
    judged, defended = list(models.values()), defend is not None
    evaluation = build_evaluation(config, data, attacks, models=judged, surrogate=surrogate, defended=defended)
    groups = [_group(evaluation, label, model, defend) for label, model in models.items()]
    check_draws({entry.label: entry.model for group in groups for entry in group.defended}, config)
    return Loaded(device, data, groups, evaluation)


def collect_records(
    run: Run,
    evaluation: Evaluation,
    groups: Sequence[Group],
    cost: Estimate,
    keep: Keep | None = None,
    *,
    config: DictConfig | None = None,
) -> pd.DataFrame:
    """Records of an evaluation on ``groups``, with a progress bar; parts that a killed run stored are not run again.

    Args:
        cost: by which the display knows the time left: an image costs more under one attack than under another.
        keep: receives the adversarial examples of each run, chunk by chunk.
        config: of a command whose attacks may run in several ``processes``; None: in this one.
    """
    images_of_run, unit = len(evaluation.evaluator), evaluation.evaluator.unit
    works = [cost.by_run.get(each.part, 0.0) for group in groups for each in evaluation.runs(group)]
    with Progress(len(works) * images_of_run, "judge", unit=unit, work=images_of_run * sum(works)) as progress:

        def show(each: AttackRun, images: int) -> None:
            work = images * cost.by_run.get(each.part, 0.0)
            progress.advance_part(images, Part(each.title, each.part, images_of_run), work=work)

        if config is not None and config.processes > 1:
            attack_in_processes(run, config, evaluation, groups, show)
            return evaluation.records(groups, part=run.records_part)  # of what is stored
        return evaluation.records(groups, keep=keep, part=run.records_part, show=show)


def print_notes(sets: Mapping[str, Data]) -> None:
    """Print what the readers of data sets changed or left out, where no table will tell it; by split."""
    for split, data in sets.items():
        for note in data.notes:
            print(f"{split}: {note}", flush=True)


def word_sources(attacks: Mapping[str, Attack | None]) -> dict[str, CandidateSource]:
    """The source of words of each attack that has one."""
    found = {name: getattr(getattr(attack, "text", None), "candidates", None) for name, attack in attacks.items()}
    return {name: source for name, source in found.items() if source is not None}


def candidate_fingerprints(attacks: Mapping[str, Attack | None]) -> dict[str, str]:
    """Fingerprint of the source of words of each attack that has one."""
    sources = word_sources(attacks)
    # Each once: that of a language model is a hash of all of its weights.
    known = {id(source): source.fingerprint for source in {id(each): each for each in sources.values()}.values()}
    return {name: known[id(source)] for name, source in sources.items()}


def refuse_unread_candidates(attacks: Mapping[str, Attack | None]) -> None:
    """A `UserError` for an override of ``candidates`` where no attack looks for words."""
    if not word_sources(attacks):
        refuse_unread("candidates", "no attack here replaces words")


def attack_name(config: DictConfig) -> str | None:
    """Name of the attack of ``attack=...`` in tables: its config file, and its ``name`` if it has one; else None."""
    if config.get("attack") is None:
        return None
    choice = str(HydraConfig.get().runtime.choices["attack"])
    return "-".join([choice, *filter(None, [config.attack.get("name")])])


def _refuse_unread(config: DictConfig, attacks: Mapping[str, BuiltAttack], *, several: bool) -> None:
    """A `UserError` for an override that has no bearing on what is evaluated."""
    refuse_unread("evaluation.before", "nothing is trained, so that there is no model before")
    refuse_unread_candidates({name: built.attack for name, built in attacks.items()})
    if not attacks:
        refuse_unread("threat", "no attack is run: choose attacks=... or attack=...")
    if config.get("transfer") and not several:
        refuse_unread("transfer", "there is one model: give others in checkpoints or models, or a purifier")


def built(named: NamedModel, data: Data, seed: int, texts: ClassTexts | None = None) -> Model:
    """The model of ``named`` for ``data``; a `UserError` tells which of several it is about, and calls the keys of a
    node of its own as they are typed.
    """
    try:
        return build_trained(named.config, named.checkpoint, data, seed=seed, texts=texts)
    except UserError as error:
        if not named.key:
            raise
        said = str(error)
        if named.key.startswith(("models.", "reference")):
            said = _KEY_OF_MODEL.sub(f"{named.key}.", said)
        raise UserError(said if said.startswith(f"{named.key}.") else f"{named.key}: {said}") from error


def _candidates(config: DictConfig, data: Data, models: Mapping[str, Model]) -> Candidates | None:
    first = next(iter(models.values()))
    if isinstance(data, ImageTextData) and isinstance(first, DualEncoder):
        return lazy_candidates(config.candidates, data, first)
    return None


def _group(evaluation: Evaluation, label: str, model: Model, defend: Any) -> Group:
    entry = evaluation.evaluator.entry
    if defend is None:
        return Group(bare=entry(label, model))
    defended = entry(_behind_purifier(label), defend(model), _purifier_name())
    return Group(bare=entry(label, model), defended=(defended,))


def _purifier_name() -> str:
    return str(HydraConfig.get().runtime.choices["purifier"])


def _behind_purifier(label: str) -> str:
    return f"{label}+{_purifier_name()}"
