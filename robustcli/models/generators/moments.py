"""Moments of the batch norms at a temperature: activations of draws of a cool prior differ from those in training."""

import torch
from torch import Tensor

from robustcli.models.generators.elbo import norms
from robustcli.models.generators.nvae import NVAE
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import generator


@torch.no_grad()
def moments_at(
    model: NVAE, temperature: float, *, batches: int = 500, batch_size: int = 100, seed: int = 0
) -> dict[str, Tensor]:
    """Moments of the batch norms over draws of the prior at ``temperature``: the entries of the state dict that change.

    They are means over ``batches`` batches (Vahdat and Kautz, arXiv 2007.03898, section 4); the model is left as it
    was. It costs as many samples as batches times ``batch_size``.

    Raises:
        UserError: no batch, or batches of one image.
    """
    if batches < 1 or batch_size < 2:
        raise UserError(f"moments of {batches} batches of {batch_size}: expected at least 1 of 2.")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    usual, model.temperature = model.temperature, temperature
    momenta = [norm.momentum for norm in norms(model)]
    for norm in norms(model):
        norm.momentum = None  # the plain mean of what follows
        norm.num_batches_tracked.zero_()  # type: ignore[union-attr]
    model.train()
    try:
        for number in range(batches):
            source = generator(seed, "moments", temperature, number)
            noise = [torch.randn((batch_size, *shape), generator=source) for shape in model.latent_shapes]
            model.sample([each.to(model.device) for each in noise])
        found = {name: value.clone() for name, value in model.state_dict().items() if name.endswith(("mean", "var"))}
        return {name: value for name, value in found.items() if not torch.equal(value, before[name])}
    finally:
        model.eval()
        model.temperature = usual
        model.load_state_dict(before)
        for norm, momentum in zip(norms(model), momenta, strict=True):
            norm.momentum = momentum
