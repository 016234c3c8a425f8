"""Adversarial inputs of an evaluation on the disk, and their judgement without an attack.

Shapes: B images of a chunk, C channels, H height, W width, M captions.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustcli.attacks import Adversarial, Gallery, ImageAdversarial, Pairs, ThreatModel
from robustcli.evaluation.access import AttackRun, Group
from robustcli.evaluation.evaluation import Evaluation
from robustcli.evaluation.evaluator import Attacked
from robustcli.evaluation.records import SPENT
from robustcli.utils import files

FOLDER = "adversarial"


class UnreadableInput(ValueError):
    """A stored input that is missing, damaged or of other images."""


class Stored:
    """The adversarial inputs of every run of an evaluation at the radius of its table, losslessly (float32).

    They lie in ``adversarial/[model/][attack/][access/][variant/]images-<first row>.safetensors``, a level for what
    there are several of; a file holds ``images`` (B,C,H,W), their ``rows`` (B,) in the set, and of pairs the
    ``captions``, JSON in bytes.

    Args:
        directory: of the run.
        evaluation, groups: whose inputs they are.
    """

    def __init__(self, directory: Path, evaluation: Evaluation, groups: Sequence[Group]) -> None:
        self._root, self._radius = directory / FOLDER, evaluation.threat.radius
        entries = [entry for group in groups for entry in group.entries]
        self._defended = any(group.defended for group in groups)
        # Of one model, bare and behind one defence, the access tells which is attacked, but for a transfer to each.
        one = len(entries) == 1 or (len(groups) == 1 and len(entries) == 2 and evaluation.attacker.surrogate is None)
        self._several, self._attacks = not one, len(evaluation.attacks) > 1

    def keep(self, run: AttackRun, attacked: Attacked) -> None:
        """Write a chunk; nothing at other radii than the table's."""
        if not self._of_table(run):
            return
        place = self._place(run).joinpath(*([quote(attacked.variant, safe=" ")] if attacked.variant else []))
        content = {"images": attacked.images.contiguous(), "rows": attacked.rows.contiguous()}
        if attacked.captions:
            told = json.dumps(attacked.captions).encode()
            content["captions"] = torch.frombuffer(bytearray(told), dtype=torch.uint8)
        with files.atomic(place / f"images-{int(attacked.rows[0]):06d}.safetensors") as path:
            save_file(content, path)

    def replayed(self, run: AttackRun) -> AttackRun | None:
        """``run`` with the stored inputs in place of its search; None where none were stored."""
        if not self._of_table(run) or not self._place(run).is_dir():
            return None
        return replace(run, attack=_Replay(self._place(run), bool(getattr(run.attack, "minimum_norm", False))))

    def _of_table(self, run: AttackRun) -> bool:
        return run.threat.radius in (None, self._radius)

    def _place(self, run: AttackRun) -> Path:
        parts = [run.entries[0].label] if self._several else []  # of a static attack the bare model, for all defences
        parts += [run.name] if self._attacks else []
        parts += [run.access] if self._defended else []
        return self._root.joinpath(*(quote(part, safe=" ") for part in parts))


@dataclass(frozen=True)
class _Replay:
    """In the place of an attack: its stored output, at no cost."""

    place: Path
    minimum_norm: bool

    def __call__(
        self, model: Any, images: Tensor, labels: Tensor, threat: ThreatModel, *, sample_ids: Tensor
    ) -> ImageAdversarial:
        found, _ = self._read(self.place, sample_ids, images)
        nothing = torch.zeros(len(images), dtype=torch.long)
        success = nothing.bool()
        return ImageAdversarial(images=found, success=success, norm=nothing.double(), **_free(len(images)))

    def variants(self, model: Any, pairs: Pairs, gallery: Gallery, threat: ThreatModel) -> Mapping[str, Adversarial]:
        return dict(self._variants(pairs))

    def _variants(self, pairs: Pairs) -> Iterator[tuple[str, Adversarial]]:
        name = _name(pairs.image_ids)
        folders = sorted(each for each in self.place.iterdir() if (each / name).is_file())
        for place in folders or [self.place]:
            images, captions = self._read(place, pairs.image_ids, pairs.images)
            if len(captions) != len(pairs.captions):
                raise UnreadableInput(f"{place / name} holds {len(captions)} captions of {len(pairs.captions)}")
            of_images, of_captions = (torch.zeros(len(side), dtype=torch.long) for side in (images, captions))
            yield (
                unquote(place.name) if folders else "",
                Adversarial(
                    images=images,
                    captions=captions,
                    norm=of_images.double(),
                    edits=of_captions,
                    image_success=of_images.bool(),
                    caption_success=of_captions.bool(),
                    **_free(len(images)),
                ),
            )

    def _read(self, place: Path, rows: Tensor, clean: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """The images of ``rows`` (B,), shaped as the clean ones, and their captions."""
        path = place / _name(rows)
        with _readable(path):
            content = load_file(path)
            images, captions = content["images"], content.get("captions")
            if not torch.equal(content["rows"], rows.cpu()) or images.shape != clean.shape:
                raise ValueError("it holds other images")
            if images.dtype != torch.float32 or not bool(((images >= 0) & (images <= 1)).all()):
                raise ValueError("it holds pixels out of [0, 1]")
            told = [] if captions is None else json.loads(bytes(captions.tolist()))
            if not isinstance(told, list) or not all(isinstance(each, str) for each in told):
                raise ValueError("its captions are no texts")
        return images.to(clean.device), tuple(told)


def _free(count: int) -> dict[str, Any]:
    """The costs of no search."""
    return {name: torch.zeros(count, dtype=torch.long) for name in SPENT}


def _name(rows: Tensor) -> str:
    return f"images-{int(rows[0]):06d}.safetensors"


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (SafetensorError, OSError, KeyError, ValueError, RecursionError) as error:
        raise UnreadableInput(f"{path} cannot be judged: {error}") from error
