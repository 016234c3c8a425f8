"""New images by random transformations of torchvision: RandAugment, TrivialAugment and AutoAugment.

Shapes: S image size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from robustcli.data.augment.base import Augmenter, to_bytes
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least, one_of
from robustcli.utils.seeding import derive_seed

_MAGNITUDES = 31  # strengths of RandAugment, as torchvision and the paper count them: 0 to 30
_POLICIES = {"trivialaugment": "TrivialAugmentWide", "autoaugment": "AutoAugment"}  # their names in torchvision


class RandAugment(Augmenter):
    """New images of an image by random changes of colour and shape; they stand with all of its captions.

    The captions are not changed: what says "red" or "left" may be wrong of the new image.

    Args:
        number: new images of an image.
        policy: ``randaugment`` (Cubuk et al. 2020), ``trivialaugment`` (Müller and Hutter 2021, wide) or
            ``autoaugment`` (Cubuk et al. 2019, learned on ImageNet).
        num_ops: changes of an image; of ``randaugment`` alone, None: 2.
        magnitude: their strength, 0 to 30; of ``randaugment`` alone, None: 9.

    Raises:
        UserError: a value out of range, or one that the policy does not read.
    """

    def __init__(
        self, *, number: int, policy: str = "randaugment", num_ops: int | None = None, magnitude: int | None = None
    ) -> None:
        from torchvision.transforms import v2  # a second to import, which no other method needs

        self.number = at_least("number", number, 1, node="augment")
        one_of("policy", policy, ["randaugment", *_POLICIES], node="augment")
        if policy == "randaugment":
            strength = at_least("magnitude", 9 if magnitude is None else magnitude, 0, node="augment")
            if strength >= _MAGNITUDES:
                raise UserError(f"augment.magnitude is {strength}: it is at most {_MAGNITUDES - 1}.")
            count = at_least("num_ops", 2 if num_ops is None else num_ops, 1, node="augment")
            self._transform: torch.nn.Module = v2.RandAugment(count, strength, _MAGNITUDES)
            return
        for key, value in (("num_ops", num_ops), ("magnitude", magnitude)):
            if value is not None:
                raise UserError(f"augment.{key} is {value}: nothing would read it, because policy={policy} has none.")
        self._transform = getattr(v2, _POLICIES[policy])()

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        pixels = torch.from_numpy(to_bytes(data.images(torch.tensor(images)))).permute(0, 3, 1, 2)
        return [
            AugmentedPair(source=image, image=changed.permute(1, 2, 0).contiguous().numpy())
            for image, one in zip(images, pixels, strict=True)
            for turn in range(self.number)
            if not torch.equal(changed := self._changed(one, seed, data.image_ids[image], turn), one)
        ]

    def _changed(self, pixels: Tensor, *stream: str | int) -> Tensor:
        """(3,S,S) uint8 -> (3,S,S) uint8."""
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator of the CPU alone
            torch.default_generator.manual_seed(derive_seed("randaugment", *stream))
            changed: Tensor = self._transform(pixels)
        return changed
