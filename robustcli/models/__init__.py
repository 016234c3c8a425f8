"""Dual encoders: images and captions in one space."""

from robustcli.models.clip import open_clip
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.factory import load, restore
from robustcli.models.tiny import tiny
from robustcli.models.weights import load_weights, save_weights
from robustcli.models.words import WordTokenizer, build_vocabulary

__all__ = [
    "DualEncoder",
    "WordTokenizer",
    "build_vocabulary",
    "load",
    "load_weights",
    "open_clip",
    "restore",
    "save_weights",
    "tiny",
]
