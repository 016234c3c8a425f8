"""Sizes of an NVAE, under the keys of the published files."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

from robustcli.utils.errors import UserError

_PUBLISHED = {
    "pre_post_process_blocks": "num_pre-post_process_blocks",
    "pre_post_process_cells": "num_pre-post_process_cells",
    "initial_channels": "initial_channels",
    "is_adaptive": "is_adaptive",
}
# Widths cost memory alone, which `meta` tells; of all else each is a module, or halves the image.
_MOST = {"initial_channels": 10_000, "latent_per_group": 10_000, "logistic_mixtures": 1000}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of an NVAE; the keys of ``configuration.autoencoder``, less their ``num_``.

    Args:
        scales, groups_per_scale: a group has one latent. With ``is_adaptive`` a scale has half the groups of the next
            finer one, at least ``min_groups_per_scale``.
        cells_per_group, latent_per_group: D; ``nf_cells``: blocks of the normalising flow behind a latent, or None.
        initial_channels: at full resolution; each halving doubles them.
        pre_post_process_blocks: halvings before the tower, of ``pre_post_process_cells`` cells each.
        logistic_mixtures: of the distribution of a pixel.
    """

    scales: int
    groups_per_scale: int
    is_adaptive: bool = False
    min_groups_per_scale: int = 1
    cells_per_group: int
    latent_per_group: int
    nf_cells: int | None = None
    initial_channels: int
    pre_post_process_blocks: int
    pre_post_process_cells: int
    logistic_mixtures: int

    @classmethod
    def read(cls, published: Mapping[str, Any]) -> Self:
        """Sizes from the published keys; `UserError` where one is missing, unknown or out of range."""
        names = {_published(name): name for name in cls.__dataclass_fields__}
        odd = [key for key in published if key not in names]
        lacking = [key for key, name in names.items() if key not in published and not hasattr(cls, name)]
        if odd or lacking:
            wrong = f"has no key {odd[0]!r}" if odd else f"lacks {lacking[0]!r}"
            raise UserError(f"the configuration of an NVAE {wrong}: expected {', '.join(names)}.")
        sizes = cls(**{names[key]: value for key, value in published.items()})
        if not isinstance(sizes.is_adaptive, bool):
            raise UserError(f"the configuration of an NVAE has is_adaptive {sizes.is_adaptive!r}: write true or false.")
        for key, name in names.items():
            value, least, most = getattr(sizes, name), 0 if name.startswith("pre_post") else 1, _MOST.get(name, 100)
            if name == "is_adaptive" or (name == "nf_cells" and value is None):
                continue
            if not isinstance(value, int) or not least <= value <= most:
                raise UserError(f"the configuration of an NVAE has {key} {value!r}: expected {least} to {most:,}.")
        return sizes

    def published(self) -> dict[str, Any]:
        """The mapping that `read` reads."""
        return {_published(name): value for name, value in asdict(self).items()}

    def groups(self, scale: int) -> int:
        """Groups of a scale; 0 is the coarsest."""
        if not self.is_adaptive:
            return self.groups_per_scale
        return max(self.min_groups_per_scale, self.groups_per_scale >> (self.scales - 1 - scale))

    def channels(self, scale: int) -> int:
        """Channels of a scale's features."""
        return self.initial_channels << (self.pre_post_process_blocks + self.scales - 1 - scale)


def check_sizes(resolution: tuple[int, int, int], sizes: Sizes, levels: int, temperature: float) -> None:
    """`UserError` for sizes that no network can have, fewer than 2 grey levels or a negative temperature."""
    channels, height, width = resolution
    if channels not in (1, 3):
        raise UserError(f"the configuration of an NVAE has {channels} channels: expected 1 or 3.")
    by = 2 ** (sizes.pre_post_process_blocks + sizes.scales - 1)
    if height % by or width % by:
        raise UserError(
            f"an NVAE of {sizes.scales} scales and {sizes.pre_post_process_blocks} blocks before them halves images "
            f"to 1/{by}, which {height} x {width} is not divisible by: take fewer scales or blocks, or another size."
        )
    if sizes.pre_post_process_blocks and not sizes.pre_post_process_cells:
        raise UserError(
            "the configuration of an NVAE has blocks of no cells: num_pre-post_process_cells is at least 1."
        )
    if levels < 2:
        raise UserError(f"the configuration of an NVAE has levels {levels}: expected at least 2, 256 for 8 bits.")
    if not temperature >= 0:
        raise UserError(f"temperature is {temperature}: expected at least 0; 0.6 is usual.")


def _published(name: str) -> str:
    return _PUBLISHED.get(name, name if name.startswith("min_") else f"num_{name}")
