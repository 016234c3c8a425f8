"""One-to-many augmentation of image-text sets: methods, what they made on disk, and a set that trains with it."""

from robustcli.data.augment.augmented import Augmented, FewerCaptions
from robustcli.data.augment.base import Augmenter
from robustcli.data.augment.captions import OwnCaptions
from robustcli.data.augment.scenes import Paraphrase, Redraw
from robustcli.data.augment.shards import AugmentedPair, StoredPair, read_manifest, read_method, read_pairs

__all__ = [
    "Augmented",
    "AugmentedPair",
    "Augmenter",
    "FewerCaptions",
    "OwnCaptions",
    "Paraphrase",
    "Redraw",
    "StoredPair",
    "read_manifest",
    "read_method",
    "read_pairs",
]
