"""A cleaner that does not fit the images is told before any work."""

from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.builders.defences import build_purified
from robustcli.data import Digits
from robustcli.utils.errors import UserError


class Smooth(nn.Module):
    """A mean filter: an even window makes images of one pixel more a side, and one of 0 is none."""

    randomised = False

    def __init__(self, *, window: int) -> None:
        super().__init__()
        self.window = window

    def forward(self, images: Tensor) -> Tensor:
        return F.avg_pool2d(images, self.window, stride=1, padding=self.window // 2)


def node(window: int) -> Any:
    function = {"_target_": f"{__name__}.Smooth", "window": window}
    return OmegaConf.create({"_target_": "robustcli.defenses.Step", "function": function, "draws": 1, "memory": 2.0})


def test_a_cleaner_that_changes_the_size_is_refused() -> None:
    data, device = Digits(split="test"), torch.device("cpu")
    build_purified(node(3), data, device)
    with pytest.raises(UserError, match="Smooth turns the images of digits, which are 1 x 8 x 8, into 1 x 9 x 9"):
        build_purified(node(4), data, device)
    with pytest.raises(UserError, match="Smooth cannot clean the images of digits, which are 1 x 8 x 8: "):
        build_purified(node(-1), data, device)


@pytest.mark.parametrize("node", [0.5, "blur", {"sigma": 1}])
def test_what_is_no_node_is_no_cleaner(node: object) -> None:
    with pytest.raises(UserError, match="but must be a cleaner: choose one of `robustcli list purifier`"):
        build_purified(OmegaConf.create({"a": node}).a, Digits(split="test"), torch.device("cpu"))
