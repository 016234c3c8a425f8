"""One-to-many augmentation of image-text sets: methods, what they made on disk, and a set that trains with it."""

from robustcli.data.augment.augmented import Augmented, FewerCaptions
from robustcli.data.augment.base import Augmenter
from robustcli.data.augment.captioner import Captioner
from robustcli.data.augment.captions import OwnCaptions
from robustcli.data.augment.diffusion import ImageToImage, TextToImage
from robustcli.data.augment.lexical import EDA, Synonyms
from robustcli.data.augment.rewriting import BackTranslation, LLMRewrite
from robustcli.data.augment.scenes import Paraphrase, Redraw
from robustcli.data.augment.shards import AugmentedPair, StoredPair, read_manifest, read_method, read_pairs
from robustcli.data.augment.transforms import RandAugment

__all__ = [
    "EDA",
    "Augmented",
    "AugmentedPair",
    "Augmenter",
    "BackTranslation",
    "Captioner",
    "FewerCaptions",
    "ImageToImage",
    "LLMRewrite",
    "OwnCaptions",
    "Paraphrase",
    "RandAugment",
    "Redraw",
    "StoredPair",
    "Synonyms",
    "TextToImage",
    "read_manifest",
    "read_method",
    "read_pairs",
]
