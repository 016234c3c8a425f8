"""Which captions belong to which image, and which of them a batch of a training holds.

Shapes: N images, M captions, B pairs of a batch.
"""

import pytest
import torch
from torch import Tensor

from robustcli.data import ImageTextData
from robustcli.data.sampling import Append, Epochs, Group, PairSampler, Replace
from robustcli.utils.errors import UserError

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


class Versions(Unsorted):
    """Four images; image 0 has one augmented pair, with caption 9, and image 2 has three, with images 4 to 6."""

    def __init__(self) -> None:
        super().__init__()
        self.captions = [*self.captions, "a new caption"]
        self.owner = torch.tensor([*OWNER, 0])
        self.image_ids = [*self.image_ids, "new 4", "new 5", "new 6"]

    def pairs_of(self) -> tuple[list[Tensor], list[Tensor]]:
        own = Unsorted().pairs_of()[0]
        new = [[(0, 9)], [], [(4, 0), (5, 0), (6, 5)], []]
        return own, [torch.tensor(pairs, dtype=torch.long).reshape(-1, 2) for pairs in new]


def _pairs(sampler: PairSampler, batches: int) -> list[tuple[int, int]]:
    drawn = [sampler(number) for number in range(batches)]
    return [pair for each in drawn for pair in zip(each.image_ids.tolist(), each.caption_ids.tolist(), strict=True)]


def test_replace_draws_each_pair_of_an_item_as_often_and_an_item_once_an_epoch() -> None:
    drawn = _pairs(PairSampler(Versions(), batch_size=4, seed=0), 600)
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert counts == {
        **{pair: pytest.approx(150, abs=40) for pair in [(0, 1), (0, 3), (0, 6), (0, 9)]},
        **{pair: pytest.approx(120, abs=40) for pair in [(2, 0), (2, 5), (4, 0), (5, 0), (6, 5)]},
        **{pair: pytest.approx(300, abs=50) for pair in [(1, 2), (1, 7), (3, 4), (3, 8)]},
    }


def test_replace_takes_a_share_that_rises_over_epochs() -> None:
    sampler = PairSampler(Versions(), batch_size=4, seed=0, pairing=Replace(share=1.0, rise=2))
    new = {(0, 9), (4, 0), (5, 0), (6, 5)}
    epochs = [sum(pair in new for pair in _pairs(sampler, 1))]
    assert epochs[0] == 0, "none in the first epoch"
    later = [
        pair for number in range(2, 40) for pair in zip(*map(Tensor.tolist, _columns(sampler, number)), strict=True)
    ]
    assert sum(pair in new for pair in later) == 2 * 38, "and every visit of an item that has some at the end"


def _columns(sampler: PairSampler, number: int) -> tuple[Tensor, Tensor]:
    batch = sampler(number)
    return batch.image_ids, batch.caption_ids


def test_append_visits_every_pair_once_an_epoch() -> None:
    sampler = PairSampler(Versions(), batch_size=13, seed=0, pairing=Append())
    assert sampler.batches_per_epoch == 1
    assert len(set(_pairs(sampler, 1))) == 13 and sorted(_pairs(sampler, 1)) == sorted(
        sampler(3) and _pairs(sampler, 1)
    )


def test_group_puts_several_pairs_of_an_item_into_a_batch() -> None:
    sampler = PairSampler(Versions(), batch_size=8, seed=0, pairing=Group(pairs=2))
    item = {4: 2, 5: 2, 6: 2}
    for number in range(20):
        batch = sampler(number)
        items = [item.get(image, image) for image in batch.image_ids.tolist()]
        assert items[::2] == items[1::2] and len(set(items)) == 4
        pairs = list(zip(batch.image_ids.tolist(), batch.caption_ids.tolist(), strict=True))
        assert len(set(pairs)) == 8, "without repetition where an item has enough"
    wide = PairSampler(Versions(), batch_size=12, seed=0, pairing=Group(pairs=3))(0)
    assert sorted(wide.caption_ids[wide.image_ids == 1].tolist())[1:] != [] and len(wide.captions) == 12


def test_a_group_that_does_not_divide_the_batch_is_refused() -> None:
    with pytest.raises(UserError, match=r"batch_size is 7.*set it to 6"):
        PairSampler(Versions(), batch_size=7, seed=0, pairing=Group(pairs=2))
    for wrong in (lambda: Replace(share=1.5), lambda: Replace(rise=-1), lambda: Group(pairs=1)):
        with pytest.raises(UserError, match="pairing"):
            wrong()


def test_a_batch_is_a_function_of_its_number_for_every_pairing() -> None:
    for pairing in (Replace(), Append(), Group(pairs=2)):
        fresh, used = (PairSampler(Versions(), batch_size=4, seed=1, pairing=pairing) for _ in range(2))
        for number in range(5):
            used(number)
        assert torch.equal(fresh(3).caption_ids, used(3).caption_ids)
        assert torch.equal(fresh(3).image_ids, used(3).image_ids)


def test_items_of_a_batch_draw_their_group_each_for_itself() -> None:
    sampler = PairSampler(Versions(), batch_size=8, seed=0, pairing=Group(pairs=2))
    batches = [sampler(number) for number in range(30)]
    first = [
        [int(each.caption_ids[each.image_ids == item][0]) == low for each in batches] for item, low in ((1, 2), (3, 4))
    ]
    assert first[0] != first[1] and first[0] != [not each for each in first[1]]
