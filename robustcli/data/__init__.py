"""Sets of images with captions: the embedded one and those that are read from files."""

from robustcli.data.base import ImageTextData
from robustcli.data.karpathy import KarpathyJSON
from robustcli.data.scenes import Scenes
from robustcli.data.shards import Shards
from robustcli.data.tables import CaptionTable

__all__ = ["CaptionTable", "ImageTextData", "KarpathyJSON", "Scenes", "Shards"]
