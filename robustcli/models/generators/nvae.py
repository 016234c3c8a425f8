"""NVAE, a deep hierarchical variational autoencoder (Vahdat and Kautz, arXiv 2007.03898).

Configuration, names of the weights and the order of the groups are those of the published models of
NVAE-from-scratch, so their checkpoints load as they are.

Shapes: B batch, C channels, H height, W width; L latents, coarse to fine, of which one is (D,h,w).
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint as recompute

from robustcli.models.generators.base import Generator
from robustcli.models.generators.cells import DecoderCell, DecoderCombiner, EncoderCell, EncoderCombiner, FlowBlock
from robustcli.models.generators.configuration import Sizes, check_sizes
from robustcli.models.generators.layers import NormedConv2d, soft_clamp
from robustcli.models.generators.mixture import LogisticMixture, parameter_count
from robustcli.models.network import fingerprint

_TOWER, _AFTER = 6, 3  # expansion of the decoder's cells


class Inference(NamedTuple):
    """Outputs of `NVAE.infer`: ``parameters`` of the mixture (see `LogisticMixture`) and ``kl`` (B,L) in nats."""

    parameters: Tensor
    kl: Tensor


class NVAE(Generator):
    """An NVAE with random weights; `load` reads one from a file.

    Args:
        configuration: ``resolution`` (C,H,W), ``autoencoder`` (see `Sizes`), as in published files, and optionally
            ``levels``, the grey levels of a channel (256).
        temperature: of the draws from the prior; 0.6 in the paper of the purification.
        seed: of the weights; the global generator is left alone.

    Raises:
        UserError: a configuration that is incomplete or impossible.
    """

    def __init__(self, configuration: Mapping[str, Any], *, temperature: float = 0.6, seed: int = 0) -> None:
        super().__init__()
        self.sizes = sizes = Sizes.read(configuration["autoencoder"])
        channels, height, width = (int(side) for side in configuration["resolution"])
        self.resolution, self.temperature = (channels, height, width), temperature
        self.levels = int(configuration.get("levels", 256))
        check_sizes(self.resolution, sizes, self.levels, temperature)
        self._places = [(scale, group) for scale in range(sizes.scales) for group in range(sizes.groups(scale))]
        shrunk = [2 ** (sizes.pre_post_process_blocks + sizes.scales - 1 - scale) for scale, _ in self._places]
        self.latent_shapes = tuple((sizes.latent_per_group, height // by, width // by) for by in shrunk)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self._build_encoder(channels)
            self._build_decoder(channels, (height // shrunk[0], width // shrunk[0]))
        self.eval()

    @classmethod
    def load(cls, path: str | Path, *, temperature: float = 0.6) -> "NVAE":
        """A frozen NVAE in eval mode from a published file or one of ours; see `robustcli.models.generators.files`."""
        from robustcli.models.generators.files import load_nvae

        return load_nvae(path, temperature=temperature)

    @property
    def configuration(self) -> dict[str, Any]:
        """The sizes that build this network again; plain JSON data, in the layout of published files."""
        found = {"autoencoder": self.sizes.published(), "resolution": list(self.resolution)}
        return found if self.levels == 256 else {**found, "levels": self.levels}

    @property
    def description(self) -> dict[str, Any]:
        """The entry of the generator in a run's records; plain JSON data."""
        return {"generator": "nvae", "configuration": self.configuration, "temperature": self.temperature}

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return self.const_prior.device

    @property
    def network(self) -> nn.Module:
        """The module whose weights are the model's: itself."""
        return self

    def fingerprint(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of the weights."""
        return fingerprint(self)

    def encode(self, images: Tensor) -> list[Tensor]:
        """The bottom-up pass: (B,C,H,W) in [0,1] -> L features, coarse to fine.

        Raises:
            ValueError: images of another shape than ``resolution``.
        """
        if images.ndim != 4 or tuple(images.shape[1:]) != self.resolution:
            raise ValueError(f"images are {tuple(images.shape)}: this generator takes (B, *{self.resolution})")
        x = self.preprocessing_block(_laid_out(2.0 * images - 1.0))
        features: dict[tuple[int, int], Tensor] = {}
        for scale in reversed(range(self.sizes.scales)):
            tower = _dict(self.encoder_tower[f"scale_{scale}"])
            for group in range(self.sizes.groups(scale)):
                x = tower[f"group_{group}"](x)
                features[scale, group] = x
            if scale:
                x = tower["downsampling"](x)
        return [self.encoder_0(x), *(features[place] for place in self._places[1:])]

    def latents(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The posterior means, each given those before it; see `Generator.latents`."""
        x, found = self._start(len(features[0])), []
        for i, feature in enumerate(features):
            x = self._enter(i, x)
            found.append(self._kept(i, x, feature, self._prior(i, x)[0]))
            x = self._leave(i, x, found[-1])
        return found

    def decode(
        self, features: Sequence[Tensor], alphas: Tensor, noise: Sequence[Tensor], *, checkpoint: bool = False
    ) -> Tensor:
        """The top-down pass: posterior means and draws from the prior, mixed; see `Generator.decode`."""
        weights = alphas.to(features[0]).reshape(-1, len(self._places), 1, 1, 1)

        def mix(i: int, x: Tensor, feature: Tensor, weight: Tensor, eps: Tensor) -> Tensor:
            # z_i = (1 - alpha_i) z_i(image) + alpha_i z_i(drawn) (Serez et al., section 3).
            x = self._enter(i, x)
            mean, log_scale = self._prior(i, x)
            kept = self._kept(i, x, feature, mean)
            return self._leave(i, x, (1 - weight) * kept + weight * self._draw(mean, log_scale, eps))

        x = self._start(len(features[0]))
        for i, feature in enumerate(features):
            # With ``checkpoint`` the graph keeps the inputs of each group alone, for one more forward pass. The noise
            # is given, so there is no generator state to keep.
            given = (i, x, feature, weights[:, i], noise[i].to(feature))
            x = recompute(mix, *given, use_reentrant=False, preserve_rng_state=False) if checkpoint else mix(*given)
        return self._mean(recompute(self._finish, x, use_reentrant=False) if checkpoint else self._finish(x))

    def sample(self, noise: Sequence[Tensor]) -> Tensor:
        """Images (B,C,H,W) in [0,1] from the prior alone, of L standard-normal tensors (B, *latent shape).

        The prior is that of latents behind the flow, so draws from it do not pass it. In ``decode`` all that is mixed
        does, as in the published purification: with a flow, alphas of 1 give other images than this.
        """
        x = self._start(len(noise[0]))
        for i, eps in enumerate(noise):
            x = self._enter(i, x)
            x = self._join(i, x, self._draw(*self._prior(i, x), eps.to(x)))
        return self._mean(self._finish(x))

    def infer(self, images: Tensor, noise: Sequence[Tensor]) -> Inference:
        """Both passes with latents drawn from the posterior, for training: the distribution of the images, and the KL.

        Args:
            images: (B,C,H,W) in [0,1].
            noise: L standard-normal tensors (B, *latent shape).
        """
        x, divergences = self._start(len(images)), []
        for i, feature in enumerate(self.encode(images)):
            x = self._enter(i, x)
            mean, log_scale = self._prior(i, x)
            # The posterior is relative to the prior (NVAE, section 3.2): mean + shift, log scale + log ratio.
            shift, log_ratio = self._correction(i, x, feature).chunk(2, dim=1)
            prior = soft_clamp(mean), soft_clamp(log_scale)
            posterior = soft_clamp(mean + shift), soft_clamp(log_scale + log_ratio)
            z = posterior[0] + posterior[1].exp() * noise[i].to(x)
            flowed = z if self.nf_cells is None else self.nf_cells[f"nf_{self._name(i)}"](z)
            divergences.append(self._divergence(posterior, prior, z, flowed))
            x = self._join(i, x, flowed)
        return Inference(self._finish(x), torch.stack(divergences, dim=1))

    def mixture(self, parameters: Tensor) -> LogisticMixture:
        """The distribution over images in [-1,1] of an `Inference`."""
        return LogisticMixture(parameters, channels=self.resolution[0], levels=self.levels)

    def extra_repr(self) -> str:
        return f"resolution={self.resolution}, latents={len(self._places)}, temperature={self.temperature}"

    def _start(self, count: int) -> Tensor:
        return _laid_out(self.const_prior.expand(count, -1, -1, -1))

    def _enter(self, i: int, x: Tensor) -> Tensor:
        """The cells of group i, before its latent; the first group has none."""
        scale, group = self._places[i]
        output: Tensor = _dict(self.decoder_tower[f"scale_{scale}"])[f"group_{group}"](x) if i else x
        return output

    def _prior(self, i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log scale of latent i, not yet clamped; the first is a standard normal."""
        if i == 0:
            zero = x.new_zeros(len(x), *self.latent_shapes[0])
            return zero, zero
        mean, log_scale = self.dec_sampler[self._key(i)](x).chunk(2, dim=1)
        return mean, log_scale

    def _correction(self, i: int, x: Tensor, feature: Tensor, *, first: int | None = None) -> Tensor:
        """The encoder's correction of the prior's mean and log scale, side by side; ``first``: only these channels."""
        seen = self.encoder_combiners[f"combiner_{self._name(i)}"](feature, x) if i else feature
        correction: Tensor = self.enc_sampler[self._key(i)](seen, first=first)
        return correction

    def _kept(self, i: int, x: Tensor, feature: Tensor, mean: Tensor) -> Tensor:
        """The encoder's latent i, its posterior mean: the scale is not needed, so only the first half of the
        correction's channels is computed.
        """
        return soft_clamp(mean + self._correction(i, x, feature, first=self.sizes.latent_per_group))

    def _draw(self, mean: Tensor, log_scale: Tensor, eps: Tensor) -> Tensor:
        """A draw from the prior; the temperature multiplies its standard deviation."""
        return soft_clamp(mean) + self.temperature * torch.exp(soft_clamp(log_scale)) * eps

    def _divergence(
        self, posterior: tuple[Tensor, Tensor], prior: tuple[Tensor, Tensor], z: Tensor, flowed: Tensor
    ) -> Tensor:
        """KL (B,) of the posterior to the prior; with a flow, which keeps volumes, its estimate from one draw."""
        (mean, log_scale), (prior_mean, prior_log_scale) = posterior, prior
        if self.nf_cells is None:  # in closed form, KL(N(m,s) || N(p,q)) = ((m-p)^2 + s^2) / 2q^2 - 1/2 - ln(s/q)
            near, wide = (mean - prior_mean) / prior_log_scale.exp(), (log_scale - prior_log_scale).exp()
            terms = 0.5 * (near.square() + wide.square()) - 0.5 - (log_scale - prior_log_scale)
        else:
            terms = _log_normal(z, mean, log_scale) - _log_normal(flowed, prior_mean, prior_log_scale)
        return terms.sum((1, 2, 3))

    def _leave(self, i: int, x: Tensor, z: Tensor) -> Tensor:
        """`_join`, behind the flow."""
        return self._join(i, x, z if self.nf_cells is None else self.nf_cells[f"nf_{self._name(i)}"](z))

    def _join(self, i: int, x: Tensor, z: Tensor) -> Tensor:
        """The latent joins the features, which grow after the last group of a scale."""
        scale, group = self._places[i]
        x = self.decoder_combiners[f"combiner_{self._name(i)}"](x, _laid_out(z))
        last = group == self.sizes.groups(scale) - 1
        if last and scale < self.sizes.scales - 1:
            x = _dict(self.decoder_tower[f"scale_{scale}"])["upsampling"](x)
        return x

    def _finish(self, x: Tensor) -> Tensor:
        parameters: Tensor = self.to_logits(self.postprocessing_block(x))
        return parameters

    def _mean(self, parameters: Tensor) -> Tensor:
        return 0.5 * self.mixture(parameters).mean() + 0.5

    def _name(self, i: int) -> str:
        return "{}:{}".format(*self._places[i])

    def _key(self, i: int) -> str:
        return f"sampler_{self._name(i)}"

    def _build_encoder(self, channels: int) -> None:
        sizes, width = self.sizes, self.sizes.initial_channels
        blocks = {}
        for block in range(sizes.pre_post_process_blocks):
            here = width * 2**block
            before = [EncoderCell(here) for _ in range(sizes.pre_post_process_cells - 1)]
            blocks[f"block_{block}"] = _named("cell", [*before, EncoderCell(here, 2 * here)])
        self.preprocessing_block = nn.Sequential(OrderedDict(init_conv=NormedConv2d(channels, width, 3), **blocks))
        self.encoder_tower = nn.ModuleDict()
        for scale in reversed(range(sizes.scales)):
            here = sizes.channels(scale)
            tower = self._groups(scale, EncoderCell)
            if scale:
                tower["downsampling"] = EncoderCell(here, 2 * here)
            self.encoder_tower[f"scale_{scale}"] = tower
        deepest = sizes.channels(0)
        self.encoder_0 = nn.Sequential(nn.ELU(), NormedConv2d(deepest, deepest, 1), nn.ELU())
        self.encoder_combiners = self._each("combiner", lambda width: EncoderCombiner(width), first=1)
        self.enc_sampler = self._each("sampler", lambda width: NormedConv2d(width, 2 * sizes.latent_per_group, 3))

    def _build_decoder(self, channels: int, grid: tuple[int, int]) -> None:
        sizes, latent = self.sizes, self.sizes.latent_per_group
        self.const_prior = nn.Parameter(torch.randn(1, sizes.channels(0), *grid))
        self.decoder_tower = nn.ModuleDict()
        for scale in range(sizes.scales):
            here = sizes.channels(scale)
            tower = self._groups(scale, partial(DecoderCell, expansion=_TOWER), first=int(scale == 0))
            if scale < sizes.scales - 1:
                tower["upsampling"] = DecoderCell(here, here // 2, expansion=_TOWER)
            self.decoder_tower[f"scale_{scale}"] = tower
        self.dec_sampler = self._each(
            "sampler", lambda width: nn.Sequential(nn.ELU(), NormedConv2d(width, 2 * latent, 1)), first=1
        )
        self.decoder_combiners = self._each("combiner", lambda width: DecoderCombiner(width, latent))
        self.nf_cells = None
        if sizes.nf_cells:
            flow = range(sizes.nf_cells)
            self.nf_cells = self._each("nf", lambda width: nn.Sequential(*(FlowBlock(latent) for _ in flow)))
        blocks = {}
        for block in range(sizes.pre_post_process_blocks):
            here = sizes.channels(sizes.scales - 1) // 2**block
            after = [DecoderCell(here // 2, expansion=_AFTER) for _ in range(sizes.pre_post_process_cells - 1)]
            blocks[f"block_{block}"] = _named("cell", [DecoderCell(here, here // 2, expansion=_AFTER), *after])
        self.postprocessing_block = nn.Sequential(OrderedDict(blocks))
        out = parameter_count(channels, sizes.logistic_mixtures)
        self.to_logits = nn.Sequential(nn.ELU(), NormedConv2d(sizes.initial_channels, out, 3))

    def _groups(self, scale: int, cell: Callable[[int], nn.Module], *, first: int = 0) -> nn.ModuleDict:
        cells, width = range(self.sizes.cells_per_group), self.sizes.channels(scale)
        groups = range(first, self.sizes.groups(scale))
        return nn.ModuleDict({f"group_{group}": _named("cell", (cell(width) for _ in cells)) for group in groups})

    def _each(self, kind: str, build: Callable[[int], nn.Module], *, first: int = 0) -> nn.ModuleDict:
        """A module for each latent from number ``first`` on, built from the channels of its scale."""
        numbers = range(first, len(self._places))
        return nn.ModuleDict(
            {f"{kind}_{self._name(i)}": build(self.sizes.channels(self._places[i][0])) for i in numbers}
        )


def _named(kind: str, modules: Iterable[nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict((f"{kind}_{i}", module) for i, module in enumerate(modules)))


def _laid_out(x: Tensor) -> Tensor:
    """Channels last on a CPU, where that is half again as fast; the layout passes on from layer to layer."""
    return x.contiguous(memory_format=torch.channels_last) if x.device.type == "cpu" else x


def _dict(module: nn.Module) -> nn.ModuleDict:
    assert isinstance(module, nn.ModuleDict)
    return module


def _log_normal(value: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    return -0.5 * ((value - mean) * torch.exp(-log_scale)).square() - log_scale - 0.5 * math.log(2 * math.pi)
