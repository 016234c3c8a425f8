"""Dual encoders (images and captions in one space) and classifiers, each in a wrapper that takes pixels in [0,1]."""

from robustcli.models.class_encoder import ClassEncoder
from robustcli.models.classifier import Classifier
from robustcli.models.clip import open_clip
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.factory import load, load_classifier, load_dual, restore
from robustcli.models.hf_folder import transformers
from robustcli.models.lenet import lenet
from robustcli.models.mlp_head import mlp_head, save_published
from robustcli.models.resnet_cifar import resnet_cifar
from robustcli.models.small_cnn import small_cnn
from robustcli.models.tiny import tiny
from robustcli.models.tokenizer import WordTokenizer, build_vocabulary
from robustcli.models.weights import Model, load_weights, save_weights
from robustcli.models.zero_shot import ZeroShot
from robustcli.models.zoo import timm, torchvision

__all__ = [
    "ClassEncoder",
    "Classifier",
    "DualEncoder",
    "Model",
    "WordTokenizer",
    "ZeroShot",
    "build_vocabulary",
    "lenet",
    "load",
    "load_classifier",
    "load_dual",
    "load_weights",
    "mlp_head",
    "open_clip",
    "resnet_cifar",
    "restore",
    "save_published",
    "save_weights",
    "small_cnn",
    "timm",
    "tiny",
    "torchvision",
    "transformers",
]
