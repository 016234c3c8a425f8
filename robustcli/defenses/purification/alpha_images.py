"""Images for the search of alphas: adversarial against the reconstruction alone (Serez et al. 2025), and the order in
which images are taken.

Shapes: N adversarial and M clean images, C channels, H height, W width.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from robustcli.attacks import FGSM, ThreatModel
from robustcli.attacks.adaptive.surrogate import correct_on
from robustcli.data import ImageClassData
from robustcli.defenses import PurifiedClassifier
from robustcli.utils import files
from robustcli.utils.seeding import generator


@dataclass(frozen=True)
class AdversarialImages:
    """Adversarial images of a split, and the clean ones that stand beside them.

    Attributes:
        images: (N,C,H,W) float32 in [0,1], adversarial: classified right before the attack and wrong after it.
        rows: (N,) long, their places in the data set.
        clean: (M,) long, places of clean images as they come, right or wrong; as many as were wanted, or all.
        attacked: number of images that were attacked.
        clean_correct: number of those that were classified right before.
    """

    images: Tensor
    rows: Tensor
    clean: Tensor
    attacked: int
    clean_correct: int

    def save(self, path: Path) -> None:
        """Write ``path`` whole or not at all, without loss: a byte or a JPEG would undo a small change."""
        counts = torch.tensor([self.attacked, self.clean_correct])
        content = {"images": self.images, "rows": self.rows, "clean": self.clean, "counts": counts}
        with files.atomic(path) as temporary:
            save_file({name: tensor.cpu().contiguous() for name, tensor in content.items()}, temporary)

    @classmethod
    def load(cls, path: Path) -> Self:
        """The images of a file that `save` wrote."""
        content = load_file(path)
        attacked, clean_correct = content.pop("counts").tolist()
        return cls(**content, attacked=attacked, clean_correct=clean_correct)


def shuffled(data: ImageClassData, seed: int, limit: int | None = None) -> Tensor:
    """Places of the first ``limit`` images of a shuffled order of ``data``, (M,) long; named by seed and split."""
    return torch.randperm(len(data), generator=generator(seed, "learn alphas", data.split))[:limit]


def attack_reconstruction(
    defence: PurifiedClassifier,
    data: ImageClassData,
    threat: ThreatModel,
    *,
    count: int,
    batch_size: int,
    seed: int,
    limit: int | None = None,
    on_batch: Callable[[int], None] = lambda count: None,
) -> AdversarialImages:
    """Attack the images of ``data`` in a shuffled order with FGSM within ``threat``, until ``count`` are misclassified.

    Args:
        defence: the attacked classifier; with alphas all 0 the paper's reconstruction.
        threat: norm and eps; every pixel moves by the same amount, see `FGSM`.
        count: adversarial images that are wanted; fewer are returned where the data set ends before.
        batch_size: images that are attacked at once.
        seed: of the order.
        limit: images that are attacked at most; None: all.
        on_batch: called after each batch with the number of adversarial images so far.
    """
    attack = FGSM(sign=True, seed=seed)
    order = shuffled(data, seed, limit)
    adversarial, kept, attacked, correct, total = [], [], 0, 0, 0
    for rows in torch.split(order, batch_size):
        images, labels = data.images(rows).to(defence.device), data.labels[rows].to(defence.device)
        clean_correct = correct_on(defence, images, labels)
        result = attack(defence, images, labels, threat, sample_ids=rows)
        # ``success`` alone holds for images too that were misclassified before the attack.
        fooled = clean_correct & result.success.cpu()
        adversarial.append(result.images.cpu()[fooled])
        kept.append(rows[fooled])
        attacked, correct = attacked + len(rows), correct + int(clean_correct.sum())
        total += int(fooled.sum())
        on_batch(min(total, count))
        if total >= count:
            break
    return AdversarialImages(torch.cat(adversarial)[:count], torch.cat(kept)[:count], order[:count], attacked, correct)
