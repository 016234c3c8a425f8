"""Shifts and mirrors of training images."""

import torch

from robustcli.data.augmentation import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_settings_nothing_is_changed() -> None:
    images = torch.rand(4, 3, 5, 5, generator=generator())
    assert torch.equal(Augmentation()(images, generator()), images)


def test_every_shift_up_to_the_largest_comes_up_and_the_border_is_repeated() -> None:
    ramp = (10 * torch.arange(6.0)[:, None] + torch.arange(6.0)[None, :]).expand(400, 1, 6, 6)
    found = Augmentation(shift=2)(ramp, generator())
    seen = set()
    for image in found[:, 0]:
        rows, columns = (image[:, 0] // 10).long(), (image[0] % 10).long()
        assert torch.equal(image, 10.0 * rows[:, None] + columns[None, :]), "rows and columns move together"
        down, right = int(rows[3]) - 3, int(columns[3]) - 3
        assert torch.equal(rows, (torch.arange(6) + down).clamp(0, 5))
        assert torch.equal(columns, (torch.arange(6) + right).clamp(0, 5))
        seen.add((down, right))
    assert len(seen) == 25


def test_channels_move_together_and_the_draw_is_the_generators() -> None:
    images = torch.rand(8, 1, 6, 6, generator=generator()).repeat(1, 3, 1, 1)
    found = Augmentation(shift=1, flip=True)(images, generator(3))
    assert torch.equal(found[:, 0], found[:, 2]) and found.shape == images.shape
    assert torch.equal(found, Augmentation(shift=1, flip=True)(images, generator(3)))
    assert not torch.equal(found, Augmentation(shift=1, flip=True)(images, generator(4)))


def test_half_of_the_images_are_mirrored_left_to_right() -> None:
    images = torch.rand(200, 1, 3, 4, generator=generator())
    found = Augmentation(flip=True)(images, generator())
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    assert torch.equal(found[~mirrored], images[~mirrored]) and 70 < int(mirrored.sum()) < 130
