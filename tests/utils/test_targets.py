"""Targets: components and factories are found; what writes, starts or unpickles is not callable from a config."""

import re
from pathlib import Path

import pytest
from torch import nn

from robustcli.config.groups import conf_directory
from robustcli.models.registry import MODELS
from robustcli.utils.errors import UserError
from robustcli.utils.targets import resolve_target


class Mine:
    """A class of a module of one's own."""


def mine() -> nn.Module:
    """A factory of a module of one's own."""
    return nn.Identity()


shell = re.compile  # what a module only imports is of where it was defined
ALLOWED = [f"{__name__}.Mine", f"{__name__}.mine", "torch.nn.Identity", *(row.target for row in MODELS.values())]
REFUSED = [
    "builtins.eval",
    "os.system",
    "subprocess.Popen",
    "pickle.loads",
    "torch.load",
    "torch.hub.load",
    "numpy.load",
    "pandas.read_pickle",
    "hydra.utils.instantiate",
    "robustcli.runs.provenance.subprocess.run",
    "robustcli.models.factory.json.loads",
    "robustcli.utils.files.write_text",
    "robustcli.runs.run.Run",
    "robustcli.models.save_published",
    f"{__name__}.re.compile",
    f"{__name__}.shell",
    f"{__name__}.pytest.main",
    f"{__name__}.mine.__globals__",
]


def configured() -> set[str]:
    """Every ``_target_`` of the packaged groups."""
    texts = [file.read_text() for file in Path(conf_directory()).glob("*/**/*.yaml")]
    return {target for text in texts for target in re.findall(r"_target_: ([\w.]+)", text)}


@pytest.mark.parametrize("target", [*ALLOWED, *sorted(configured())])
def test_components_and_factories_are_found(target: str) -> None:
    assert callable(resolve_target(target, "model._target_"))


@pytest.mark.parametrize("target", REFUSED)
def test_anything_else_is_refused_with_what_is_expected(target: str) -> None:
    with pytest.raises(UserError, match=r"model\._target_ is '.*', which no config may call: expected a class"):
        resolve_target(target, "model._target_")
