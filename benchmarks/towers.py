"""The towers of `tiny` against open_clip's of the same architecture, both inside the same wrapper.

The wrapper crops the captions for both; what is left to differ is the towers.
"""

from collections.abc import Callable

import torch
from open_clip import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch.nn import functional as F

from benchmarks.report import Row, cpu_seconds
from robustcli.data import Scenes
from robustcli.data.sampling import PairSampler
from robustcli.data.scenes import vocabulary
from robustcli.models import DualEncoder, tiny


def run(*, quick: bool = False) -> list[Row]:
    """A clean training step, and an image pass forward and back to the pixels."""
    batch_size, repeats = (16, 2) if quick else (128, 15)
    ours = tiny(vocabulary())
    models = {"ours": ours, "other": open_clip_twin(ours)}
    data = Scenes(split="train", train=batch_size, val=1, test=1)
    batch = PairSampler(data, batch_size=batch_size, seed=0)(0)
    images = data.images(batch.image_ids)
    rows = []
    for what, make in (("clean step", _clean_step), ("gradient to the pixels", _gradient_to_pixels)):
        cpu = cpu_seconds(
            {side: make(model, images, batch.captions) for side, model in models.items()}, repeats=repeats
        )
        rows.append(Row(what=what, against="open_clip's towers", ours=cpu["ours"], other=cpu["other"], at_least=1.0))
    return rows


def open_clip_twin(model: DualEncoder) -> DualEncoder:
    """open_clip's CLIP with the sizes of ``model``, a `tiny`."""
    size = model.description
    vision = CLIPVisionCfg(
        layers=size["layers"],
        width=size["width"],
        head_width=size["width"] // size["heads"],
        patch_size=size["patch_size"],
        image_size=size["image_size"],
    )
    text = CLIPTextCfg(
        context_length=size["context_length"],
        vocab_size=model.token_embedding().num_embeddings,
        width=size["text_width"],
        heads=size["text_heads"],
        layers=size["text_layers"],
    )
    with torch.random.fork_rng(devices=[]):
        network = CLIP(embed_dim=size["embed_dim"], vision_cfg=vision, text_cfg=text)
    return DualEncoder(network, model.tokenizer, image_size=size["image_size"], mean=[0.5] * 3, std=[0.25] * 3)


def _clean_step(model: DualEncoder, images: torch.Tensor, captions: tuple[str, ...]) -> Callable[[], None]:
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4)
    own = torch.arange(len(images))

    def step() -> None:
        text_features = model.encode_text(model.tokenize(captions))
        logits = model.logit_scale * model.encode_image(images) @ text_features.T
        ((F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2).backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return step


def _gradient_to_pixels(model: DualEncoder, images: torch.Tensor, captions: tuple[str, ...]) -> Callable[[], None]:
    model.requires_grad_(False)
    text_features = model.encode_text(model.tokenize(captions))

    def step() -> None:
        pixels = images.clone().requires_grad_(True)
        torch.autograd.grad((model.encode_image(pixels) * text_features).sum(), pixels)

    return step
