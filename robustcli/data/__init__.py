"""Sets of images with captions or with classes: the embedded ones and those that are read from files."""

from robustcli.data.base import ImageTextData
from robustcli.data.class_arrays import ClassArrays
from robustcli.data.class_folders import ClassFolders
from robustcli.data.class_pairs import ClassPairs
from robustcli.data.class_sets import Cifar10, Cifar100, Mnist, Pcam, Stl10, Svhn
from robustcli.data.class_shards import ClassShards
from robustcli.data.class_texts import ClassTexts, class_texts
from robustcli.data.classes import ImageClassData
from robustcli.data.coco_captions import CocoCaptions
from robustcli.data.digits import Digits
from robustcli.data.imagenet import ImageNet
from robustcli.data.karpathy import KarpathyJSON
from robustcli.data.parquet import CaptionParquet
from robustcli.data.scenes import Scenes
from robustcli.data.scenes.classes import SceneClasses
from robustcli.data.sentences import Sentences
from robustcli.data.shards import Shards
from robustcli.data.tables import CaptionTable
from robustcli.data.torchvision_files import TorchvisionFiles

__all__ = [
    "CaptionParquet",
    "CaptionTable",
    "Cifar10",
    "Cifar100",
    "ClassArrays",
    "ClassFolders",
    "ClassPairs",
    "ClassShards",
    "ClassTexts",
    "CocoCaptions",
    "Digits",
    "ImageClassData",
    "ImageNet",
    "ImageTextData",
    "KarpathyJSON",
    "Mnist",
    "Pcam",
    "SceneClasses",
    "Scenes",
    "Sentences",
    "Shards",
    "Stl10",
    "Svhn",
    "TorchvisionFiles",
    "class_texts",
]
