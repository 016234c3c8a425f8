"""Shifts, mirrors, crops and colours of training images."""

from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor

from robustcli.config.groups import conf_directory
from robustcli.data.augmentation import Augmentation
from robustcli.utils.errors import UserError


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


PAPER = {"flip": True, "crop_scale": 0.75, "brightness": 0.3, "contrast": 0.3, "equalize": 0.3, "grayscale": 0.1}


def own(count: int, first: int = 0) -> list[torch.Generator]:
    return [generator(1000 + first + i) for i in range(count)]


def noise(count: int, side: int = 12) -> Tensor:
    return torch.rand(count, 3, side, side, generator=generator(7))


def test_the_presets_are_off_and_the_papers() -> None:
    none = OmegaConf.load(conf_directory() / "augmentation" / "none.yaml")
    paper = OmegaConf.merge(none, OmegaConf.load(conf_directory() / "augmentation" / "purification_paper.yaml"))
    settings = {key: value for key, value in paper.items() if key != "defaults"}
    assert Augmentation(**none) == Augmentation() and Augmentation(**settings) == Augmentation(**PAPER)  # type: ignore[misc,arg-type]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("brightness", lambda images: (images - 0.5).clamp(min=0)),
        ("contrast", lambda images: 0.5 * images),
        ("grayscale", lambda images: (images * torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)).sum(1, keepdim=True)),
    ],
)
def test_each_change_is_done_to_its_share(key: str, expected) -> None:  # type: ignore[no-untyped-def]
    images = noise(400)
    found = Augmentation(**{key: 0.3})(images, generator(), own(400))
    changed = (found != images).flatten(1).any(1)
    assert 90 < int(changed.sum()) < 150
    torch.testing.assert_close(found[changed], expected(images[changed]).expand(-1, 3, -1, -1), atol=2e-4, rtol=0)
    assert torch.equal(found[~changed], images[~changed])


def test_equalised_histograms_are_even_in_each_channel() -> None:
    images = 0.4 + 0.2 * noise(4, 64)
    found = Augmentation(equalize=1.0)(images, generator(), own(4))
    spread = found.flatten(2).quantile(torch.linspace(0, 1, 5), dim=2)
    assert found.min() == 0 and found.max() == 1
    torch.testing.assert_close(spread, torch.linspace(0, 1, 5).view(5, 1, 1).expand(5, 4, 3), atol=0.08, rtol=0)


def test_a_crop_is_a_window_of_at_least_its_share() -> None:
    """On a ramp of both axes the window can be read off the corners."""
    side = 40
    ramp = torch.stack(torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij"))
    images = torch.cat([ramp, torch.zeros(1, side, side)]).expand(300, -1, -1, -1)
    found = Augmentation(crop_scale=0.75)(images, generator(), own(300))
    height = (found[:, 0, -1, 0] - found[:, 0, 0, 0]) * side + 1
    width = (found[:, 1, 0, -1] - found[:, 1, 0, 0]) * side + 1
    share, aspect = height * width / side**2, width / height
    assert 0.70 < share.min() < 0.78 and share.max() > 0.95 and found.shape == images.shape
    assert 0.7 < aspect.min() < 0.82 and 1.2 < aspect.max() < 1.4
    tops = found[:, 0, 0, 0] * side
    assert tops.min() < 1 and tops.max() > 4, "windows lie everywhere"


def test_an_images_draws_are_its_own_and_those_of_one_change_not_the_others() -> None:
    images = noise(16)
    augmentation = Augmentation(**PAPER | {"flip": False})  # type: ignore[arg-type]
    whole = augmentation(images, generator(), own(16))
    part = augmentation(images[4:6], generator(9), own(2, first=4))
    assert torch.equal(whole[4:6], part) and whole.min() >= 0 and whole.max() <= 1
    without = Augmentation(**PAPER | {"flip": False, "brightness": 0.0})(images, generator(), own(16))  # type: ignore[arg-type]
    assert 0 < int((without != whole).flatten(1).any(1).sum()) < 10
    assert any(not torch.equal(one, other) for one, other in pairwise(whole))


def test_without_generators_of_the_images_that_of_the_batch_decides() -> None:
    found = [Augmentation(**PAPER)(noise(8), generator(seed)) for seed in (1, 1, 2)]  # type: ignore[arg-type]
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_grey_images_stay_of_one_channel() -> None:
    found = Augmentation(crop_scale=0.8, equalize=1.0, grayscale=1.0)(noise(3)[:, :1], generator(), own(3))
    assert found.shape == (3, 1, 12, 12)


@pytest.mark.parametrize(
    ("key", "value"), [("crop_scale", 0.0), ("crop_scale", 1.5), ("contrast", -0.1), ("grayscale", 2)]
)
def test_a_share_out_of_range_is_named(key: str, value: float) -> None:
    with pytest.raises(UserError, match=rf"augmentation\.{key} is {value}"):
        Augmentation(**{key: value})  # type: ignore[arg-type]
