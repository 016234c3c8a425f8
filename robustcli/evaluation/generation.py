"""Evaluation of a generator on held-out images: likelihood, reconstruction error and samples.

Shapes: N images, C channels, H height, W width; L latents, coarse to fine.
"""

from collections.abc import Sequence

import pandas as pd
import torch
from torch import Tensor

from robustcli.data import ImageClassData
from robustcli.models.generators import NVAE, Trained, bits, bound
from robustcli.utils.seeding import derive_seed, generator


class GenerationJudge:
    """Evaluator of a generator on the first ``limit`` images of a set.

    Args:
        limit: images; None: all.
        seed: of the draws.
    """

    def __init__(self, data: ImageClassData, *, batch_size: int, limit: int | None, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.count = len(data) if limit is None else min(limit, len(data))

    @torch.no_grad()
    def records(self, model: NVAE) -> pd.DataFrame:
        """Records, one row an image: bits a dimension of the bound, of its likelihood term and of each latent's KL, and
        the mean squared error of the reconstruction.
        """
        starts = range(0, self.count, self.batch_size)
        frames = [self._chunk(model, torch.arange(i, min(i + self.batch_size, self.count))) for i in starts]
        return pd.concat(frames, ignore_index=True)

    def figures(self, records: pd.DataFrame) -> dict[str, float]:
        """Means of the records."""
        return {str(name): float(value) for name, value in records.drop(columns="image_id").mean().items()}

    @torch.no_grad()
    def reconstructions(self, model: NVAE, count: int) -> tuple[Tensor, Tensor]:
        """Images and their deterministic reconstructions, both (count,C,H,W) on the CPU."""
        images = self.data.images(torch.arange(min(count, self.count)))
        return images, self._decoded(model, images, torch.zeros(len(model.latent_shapes)))

    @torch.no_grad()
    def swept(self, model: NVAE, count: int, kept: Sequence[int]) -> list[Tensor]:
        """Images (count,C,H,W) for each number in ``kept``: so many coarse latents are kept, the others are sampled."""
        images, number = self.data.images(torch.arange(min(count, self.count))), len(model.latent_shapes)
        return [self._decoded(model, images, (torch.arange(number) >= keep).float()) for keep in kept]

    @torch.no_grad()
    def samples(self, model: NVAE, count: int) -> Tensor:
        """Samples (count,C,H,W) of the prior, on the CPU."""
        return model.sample([each.to(model.device) for each in self._noise(model, count)]).cpu()

    def _decoded(self, model: NVAE, images: Tensor, alphas: Tensor) -> Tensor:
        noise = [each.to(model.device) for each in self._noise(model, len(images))]
        return model.decode(model.encode(images.to(model.device)), alphas, noise).cpu()

    def _noise(self, model: NVAE, count: int) -> list[Tensor]:
        source = generator(self.seed, "generation")
        return [torch.randn((count, *shape), generator=source) for shape in model.latent_shapes]

    def _chunk(self, model: NVAE, rows: Tensor) -> pd.DataFrame:
        images = self.data.images(rows).to(model.device)
        nll, kl = bound(model, images, seed=derive_seed(self.seed, "judge", int(rows[0])))
        noise = [images.new_zeros((len(images), *shape)) for shape in model.latent_shapes]
        rebuilt = model.decode(model.encode(images), images.new_zeros(len(noise)), noise)
        columns = {"bits_per_dim": nll + kl.sum(1), "likelihood_bits": nll}
        columns |= {f"latent_{i:02d}_bits": kl[:, i] for i in range(kl.shape[1])}
        table = {name: (value / bits(model)).cpu().double().numpy() for name, value in columns.items()}
        error = (rebuilt - images).square().mean((1, 2, 3)).cpu().double().numpy()
        return pd.DataFrame({"image_id": [self.data.image_ids[row] for row in rows.tolist()], **table, "mse": error})


class FiguresJudge:
    """Evaluator of a generator that is no NVAE, by its own figures, on the first ``limit`` images of a set.

    Args:
        limit: images; None: all.
        seed: of the draws.
    """

    def __init__(self, data: ImageClassData, *, batch_size: int, limit: int | None, seed: int) -> None:
        self.data, self.batch_size, self.seed = data, batch_size, seed
        self.count = len(data) if limit is None else min(limit, len(data))

    @torch.no_grad()
    def records(self, model: Trained) -> pd.DataFrame:
        """Records, one row an image, of the figures of ``model``."""
        frames = []
        for rows in torch.split(torch.arange(self.count), self.batch_size):
            seed = derive_seed(self.seed, "judge", int(rows[0]))
            figures = model.figures(self.data.images(rows).to(model.device), seed=seed)
            names = {"image_id": [self.data.image_ids[row] for row in rows.tolist()]}
            frames.append(pd.DataFrame(names | {key: value.cpu().double().numpy() for key, value in figures.items()}))
        return pd.concat(frames, ignore_index=True)

    def figures(self, records: pd.DataFrame) -> dict[str, float]:
        """Means of the records; the first is the one that a training is judged by."""
        return {str(name): float(value) for name, value in records.drop(columns="image_id").mean().items()}

    @torch.no_grad()
    def rebuilt(self, model: Trained, count: int) -> tuple[Tensor, Tensor]:
        """Images and what the network makes of them, both (count,C,H,W) on the CPU."""
        images = self.data.images(torch.arange(min(count, self.count)))
        return images, model.rebuilt(images.to(model.device), seed=derive_seed(self.seed, "rebuilt")).cpu()

    @torch.no_grad()
    def samples(self, model: Trained, count: int) -> Tensor:
        """Samples (count,C,H,W), on the CPU."""
        return model.sampled(count, seed=derive_seed(self.seed, "samples")).cpu()
