"""Judging defences that clean images in front of an untouched classifier: by who knows what, on draws of their own.

A record is one image under one attack on one defence. ``access`` says what the attacker had: ``clean``, no attack;
``static``, the bare classifier alone (what is found there is given to every defence); ``adaptive``, the defence itself,
its gradients averaged over draws (EOT, Athalye et al. 2018); ``bpda``, the defence with the identity in place of the
cleaner's gradient. Whatever an attack claims, the verdict is that of fresh draws. ``followed`` are the smallest changes
that an attack found, gone on with in their direction to a bound.

Shapes: B images of a chunk, R answers, C channels, H height, W width.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import pandas as pd
import torch
from torch import Tensor

from robustcli.attacks import EOT, ClassifierAttack, judge_on_draws
from robustcli.attacks.adaptive.surrogate import transferable
from robustcli.attacks.core.threat import ball
from robustcli.data.classes import ImageClassData
from robustcli.defenses.purification.cleaner import StraightThrough
from robustcli.defenses.purification.purified import PurifiedClassifier
from robustcli.evaluation.base import SPENT, Part, computed
from robustcli.models import Classifier

BARE: Final = "none"  # what the bare classifier is called among the defences
ACCESS = ("clean", "static", "adaptive", "bpda")


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How defences are judged.

    Attributes:
        attacks: by name; each for every bound of the change it is run at, or for None alone where one run finds the
            smallest change.
        bounds: of the change, in the norm of the attacks, at which robust accuracy is told.
        bound: the one of the table.
        fresh: answers of the defence, none of which an attack has seen, that judge an image.
        eot: an attack averages as many answers of the defence for each gradient.
        access: of `ACCESS`, what is run; ``static`` always is, and the bare classifier judged.
        seed: of the run.
    """

    attacks: Mapping[str, Mapping[float | None, ClassifierAttack]]
    bounds: tuple[float, ...]
    bound: float
    fresh: int
    eot: int
    access: tuple[str, ...]
    seed: int

    def runs(self) -> Iterator[tuple[str, float | None, ClassifierAttack]]:
        """Every attack at every bound that it is run at."""
        for name, by_bound in self.attacks.items():
            for bound, attack in by_bound.items():
                yield name, bound, attack


class PurificationJudge:
    """Judges defences of one classifier on the first ``limit`` images.

    Args:
        data: the images.
        classifier: the bare one, which is judged as well, under the name `BARE`.
        defences: by name.
        protocol: see `Protocol`.
        batch_size: images that are attacked at once.
        limit: images; None for all.
        on_step: called when a chunk of images has been judged by one attack with one access, for a display.
    """

    def __init__(
        self,
        data: ImageClassData,
        classifier: Classifier,
        defences: Mapping[str, PurifiedClassifier],
        protocol: Protocol,
        *,
        batch_size: int,
        limit: int | None = None,
        on_step: Callable[[str, int], None] | None = None,
    ) -> None:
        self.data, self.classifier, self.defences, self.protocol = data, classifier, defences, protocol
        self.rows = torch.arange(min(limit or len(data), len(data)))
        self.batch_size, self.on_step = batch_size, on_step or (lambda _name, _count: None)

    @property
    def steps(self) -> int:
        """How often ``on_step`` will be called."""
        each = 1 + len(self.defences) * len(set(self.protocol.access) & {"adaptive", "bpda"})
        chunks = -(-len(self.rows) // self.batch_size)
        return chunks * (1 + each * sum(1 for _ in self.protocol.runs()))

    def records(self, *, part: Part | None = None) -> pd.DataFrame:
        """One row an image, defence, attack and access.

        Args:
            part: keeps the result of a chunk, so that a killed run goes on at what is left.
        """
        kept, parts = part or computed, []
        for number, rows in enumerate(torch.split(self.rows, self.batch_size)):
            # Numbered, since names of attacks and defences may be such that two of them together read alike.
            for step, (name, compute) in enumerate(self._plan(rows)):
                parts.append(kept(f"{number:05d}-{step:03d}-{name}", compute))
                self.on_step(name, len(rows))
        return pd.concat(parts, ignore_index=True)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B,C,H,W) and labels (B,) of ``rows``, where the classifier is."""
        device = self.classifier.device
        return self.data.images(rows).to(device), self.data.labels[rows].to(device)

    def attacked(
        self, defence: str, attack: ClassifierAttack, access: str, rows: Tensor
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """What an attacker with ``access`` makes of ``rows``: images (B,C,H,W), and the counts (B,) of what it cost."""
        images, labels = self.batch(rows)
        if access == "static":
            found, spent = transferable(attack, self.classifier, images, labels, rows)
            return found, vars(spent)
        model = self.defences[defence]
        if access == "bpda":
            blind = StraightThrough(model.cleaner)
            model = PurifiedClassifier(self.classifier, blind, draws=model.draws, memory=model.memory)
        result = self.averaged(attack, model)(model, images, labels, rows)
        return result.images, {name: getattr(result, name) for name in SPENT}

    def averaged(self, attack: ClassifierAttack, defence: PurifiedClassifier) -> ClassifierAttack:
        """The adaptive attack: over several answers for a gradient, where the defence draws."""
        return EOT(attack, draws=self.protocol.eot) if defence.randomised else attack

    def _plan(self, rows: Tensor) -> Iterator[tuple[str, Callable[[], pd.DataFrame]]]:
        yield "clean", partial(self._clean, rows)
        for name, bound, attack in self.protocol.runs():
            run = name if bound is None else f"{name}-{bound:g}"
            yield (
                f"static-{run}",
                partial(self._judged, rows, name, bound, attack, "static", tuple(self._models())),
            )
            for access in ("bpda", "adaptive"):
                for defence in self.defences if access in self.protocol.access else ():
                    compute = partial(self._judged, rows, name, bound, attack, access, (defence,))
                    yield f"{access}-{run}-{defence}", compute

    def _models(self) -> Mapping[str, Any]:
        return {BARE: self.classifier, **self.defences}

    def _clean(self, rows: Tensor) -> pd.DataFrame:
        images, labels = self.batch(rows)
        tables = [
            self._verdicts(name, model, images, labels, rows).assign(
                attack="clean", access="clean", norm=0.0, followed=False
            )
            for name, model in self._models().items()
        ]
        return pd.concat(tables, ignore_index=True)

    def _judged(
        self,
        rows: Tensor,
        name: str,
        bound: float | None,
        attack: ClassifierAttack,
        access: str,
        defences: tuple[str, ...],
    ) -> pd.DataFrame:
        """One attack, and what it found put to each of ``defences``."""
        images, labels = self.batch(rows)
        found, costs = self.attacked(defences[0], attack, access, rows)
        moved = ball(attack.norm, 0.0).distance(found, images)
        spent = {key: value.cpu().numpy() for key, value in costs.items()}
        known: dict[str, Any] = {"attack": name, "access": access, "bound": bound, "followed": False}
        known |= {"norm": moved.double().cpu().numpy(), **spent}
        models = self._models()
        tables = [self._verdicts(each, models[each], found, labels, rows).assign(**known) for each in defences]
        for wider in self.protocol.bounds if bound is None else ():
            for each in defences:
                if each != BARE and (access == "static" or self._draws(models[each])):
                    tables.append(self._followed(each, attack, found, rows, wider).assign(attack=name, access=access))
        return pd.concat(tables, ignore_index=True)

    def _followed(
        self, defence: str, attack: ClassifierAttack, found: Tensor, rows: Tensor, bound: float
    ) -> pd.DataFrame:
        """The smallest changes that were found, followed on in their direction to the bound.

        They end on the boundary of the model that they were found on. Another one may well be right there, and so may
        the next answer of one that draws; an attacker who may go as far as the bound does.
        """
        images, labels = self.batch(rows)
        length = ball(attack.norm, 0.0).distance(found, images)
        short = torch.nonzero((length > 0) & (length < bound)).flatten()
        way = (bound / length[short]).to(found).view(-1, 1, 1, 1)
        wider = ball(attack.norm, bound).project(images[short] + way * (found[short] - images[short]), images[short])
        table = self._verdicts(defence, self._models()[defence], wider, labels[short], rows[short.cpu()])
        moved = ball(attack.norm, 0.0).distance(wider, images[short])
        return table.assign(bound=bound, norm=moved.double().cpu().numpy(), followed=True)

    @staticmethod
    def _draws(model: Any) -> bool:
        return isinstance(model, PurifiedClassifier) and model.randomised

    def _verdicts(self, name: str, model: Any, images: Tensor, labels: Tensor, rows: Tensor) -> pd.DataFrame:
        """What fresh answers say of images (B,C,H,W); the draws of an image are the same in any batch."""
        draws = self.protocol.fresh if self._draws(model) else 1
        drawn = judge_on_draws(model, images, labels, draws=draws, seed=self.protocol.seed, names=rows.tolist())
        names = [self.data.image_ids[i] for i in rows.tolist()]
        return pd.DataFrame(
            {
                "model": name,
                "image_id": names,
                "label": [self.data.classes[i] for i in labels.tolist()],
                "answer": [self.data.classes[i] for i in drawn.predictions.mode(0).values.tolist()],
                "mean": drawn.mean().numpy(),
                "worst": drawn.worst().numpy(),
                "majority": drawn.majority().numpy(),
            }
        )
