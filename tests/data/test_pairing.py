"""Which captions belong to which image, and which of them a batch of a training holds.

Shapes: N images, M captions, B pairs of a batch.
"""

import pytest
import torch
from torch import Tensor

from robustcli.data import ImageTextData
from robustcli.data.sampling import Epochs, PairSampler

OWNER = (2, 0, 1, 0, 3, 2, 0, 1, 3)


class Unsorted(ImageTextData):
    """Captions in no order of their images, as a table may list them."""

    name, split, fingerprint = "unsorted", "train", "0"

    def __init__(self, owner: tuple[int, ...] = OWNER) -> None:
        self.owner = torch.tensor(owner)
        self.image_ids = [f"image {i}" for i in range(1 + max(owner))]
        self.captions = [f"caption {j} of image {i}" for j, i in enumerate(owner)]

    def images(self, indices: Tensor) -> Tensor:
        return torch.zeros(len(indices), 3, 4, 4)


def test_a_caption_is_true_of_its_own_image_alone() -> None:
    relation = Unsorted().relevance(torch.arange(4), torch.arange(9))
    assert relation.tolist() == [[owner == image for owner in OWNER] for image in range(4)]
    assert Unsorted().relevance(torch.tensor([3, 0]), torch.tensor([4, 1])).tolist() == [[True, False], [False, True]]


def test_the_captions_of_an_image_are_its_own_in_any_order() -> None:
    assert [rows.tolist() for rows in Unsorted().captions_of()] == [[1, 3, 6], [2, 7], [0, 5], [4, 8]]


def test_each_epoch_has_all_images_once_in_an_order_of_its_own() -> None:
    data = Unsorted(tuple(range(30)))
    epochs = Epochs(data, batch_size=10, seed=3)
    orders = [torch.cat([epochs(3 * epoch + part) for part in range(3)]).tolist() for epoch in range(3)]
    assert all(sorted(order) == list(range(30)) for order in orders)
    assert len(set(map(tuple, orders))) == 3
    assert epochs(4).tolist() == orders[1][10:20], "a function of the number, whatever was asked for before"
    assert Epochs(data, batch_size=10, seed=4)(0).tolist() != orders[0][:10]


def test_each_visit_draws_one_of_the_captions_of_the_image() -> None:
    """Also where the place in the batch is the same, and each of them as often as the others."""
    sampler = PairSampler(Unsorted((0,) * 3), batch_size=1, seed=3)
    drawn = torch.cat([sampler(number).caption_ids for number in range(300)])
    assert torch.bincount(drawn, minlength=3).tolist() == pytest.approx([100] * 3, abs=30)


def test_a_batch_is_made_of_pairs_and_knows_which_are_true() -> None:
    class Twins(Unsorted):
        """Images 0 and 1 show the same, and so do 2 and 3: what is said of one is true of both."""

        def relevance(self, images: Tensor, captions: Tensor) -> Tensor:
            return self.owner[captions][None, :] // 2 == images[:, None] // 2

    data = Twins()
    batch = PairSampler(data, batch_size=4, seed=0)(0)
    assert data.owner[batch.caption_ids].tolist() == batch.image_ids.tolist()
    assert list(batch.captions) == [data.captions[j] for j in batch.caption_ids.tolist()]
    pairs = [image // 2 for image in batch.image_ids.tolist()]
    assert batch.matches.tolist() == [[one == other for other in pairs] for one in pairs]
