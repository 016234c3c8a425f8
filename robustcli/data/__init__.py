"""Sets of images with captions or with classes: the embedded ones and those that are read from files."""

from robustcli.data.base import ImageTextData
from robustcli.data.class_arrays import ClassArrays
from robustcli.data.class_folders import ClassFolders
from robustcli.data.class_sets import Cifar10, Cifar100, Mnist
from robustcli.data.class_texts import ClassTexts, class_texts
from robustcli.data.classes import ImageClassData
from robustcli.data.coco_captions import CocoCaptions
from robustcli.data.digits import Digits
from robustcli.data.karpathy import KarpathyJSON
from robustcli.data.parquet import CaptionParquet
from robustcli.data.scenes import Scenes
from robustcli.data.scenes.classes import SceneClasses
from robustcli.data.shards import Shards
from robustcli.data.tables import CaptionTable

__all__ = [
    "CaptionParquet",
    "CaptionTable",
    "Cifar10",
    "Cifar100",
    "ClassArrays",
    "ClassFolders",
    "ClassTexts",
    "CocoCaptions",
    "Digits",
    "ImageClassData",
    "ImageTextData",
    "KarpathyJSON",
    "Mnist",
    "SceneClasses",
    "Scenes",
    "Shards",
    "class_texts",
]
