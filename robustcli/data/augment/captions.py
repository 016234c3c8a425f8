"""The data set's own captions as augmentation: what 1:1 pairs leave out."""

from collections.abc import Sequence

from robustcli.data.augment.augmented import FewerCaptions
from robustcli.data.augment.base import Augmenter, own_order
from robustcli.data.augment.shards import AugmentedPair
from robustcli.data.base import ImageTextData
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import at_least


class OwnCaptions(Augmenter):
    """The captions that people wrote for an image beyond the first, accumulated in the order of `own_order`.

    Args:
        number: captions beyond those of ``dataset.captions_per_image``.

    Raises:
        UserError: a set that was not cut to fewer captions an image.
    """

    def __init__(self, *, number: int) -> None:
        self.number = at_least("number", number, 1, node="augment")

    def check(self, data: ImageTextData) -> None:
        if not isinstance(data, FewerCaptions):
            raise UserError(
                "augment=captions adds the captions that dataset.captions_per_image leaves out: set it to 1, here and "
                "in the training."
            )

    def pairs(self, data: ImageTextData, images: Sequence[int], *, seed: int) -> list[AugmentedPair]:
        assert isinstance(data, FewerCaptions)
        full = data.base
        made: list[AugmentedPair] = []
        counts, captions_of = data.captions_of(), full.captions_of()
        for image in images:
            rows = captions_of[image][own_order(full.image_ids[image], len(captions_of[image]))].tolist()
            kept = len(counts[image])
            made.extend(
                AugmentedPair(source=image, caption=full.captions[row], facts=full.caption_facts(row))
                for row in rows[kept : kept + self.number]
            )
        return made
