"""The readers on photographs with captions that are too large, and not free enough, to lie in the repository."""

from pathlib import Path

import pytest
import torch

from robustcli.data import KarpathyJSON
from robustcli.data.faults import Faults
from robustcli.data.karpathy import read

CAPTIONS = Path(__file__).resolve().parents[3] / "shared" / "data" / "captions"

pytestmark = pytest.mark.skipif(not CAPTIONS.is_dir(), reason=f"the photographs are not at {CAPTIONS}")


@pytest.mark.parametrize(
    ("name", "split", "count"),
    [
        ("flickr8k_dev", "train", 1600),
        ("flickr8k_dev", "val", 400),
        ("flickr8k_dev", "test", 500),
        ("coco_mini_dev", "test", 234),
    ],
)
def test_both_forms_hold_the_same_images(name: str, split: str, count: int):
    folder = CAPTIONS / name
    data = KarpathyJSON(folder / f"dataset_{name}.json", folder, split=split, image_size=32)
    assert len(data) == len(set(data.image_ids)) == count
    assert torch.bincount(data.owner).min() >= 5 and data.skipped == 0
    pixels = data.images(torch.arange(0, count, 10))
    assert pixels.min() >= 0 and pixels.max() <= 1 and pixels.std() > 0.1
    lists = KarpathyJSON(folder / f"{name}_{{split}}.json", folder, split=split, image_size=32)
    assert _by_image(lists) == _by_image(data)


def test_no_photograph_is_in_two_splits():
    folder = CAPTIONS / "flickr8k_dev"
    names = [
        {
            record.image_id
            for record in read(str(folder / "dataset_flickr8k_dev.json"), folder, split, Faults("raise")).records
        }
        for split in ("train", "val", "test")
    ]
    assert len(set.union(*names)) == sum(map(len, names)) == 2500


def _by_image(data: KarpathyJSON) -> dict[str, list[str]]:
    own = [sorted(data.captions[caption] for caption in captions.tolist()) for captions in data.captions_of()]
    return dict(zip(data.image_ids, own, strict=True))
