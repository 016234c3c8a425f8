"""The interface of networks other than NVAE that ``train-generator`` trains, and their files.

Shapes: B batch, C channels, H height, W width.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from robustcli import __version__
from robustcli.models.network import fingerprint
from robustcli.models.torch_files import read_torch
from robustcli.models.weights import METADATA_KEY, check_numbers, find_weights, read_safetensors
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic


class Trained(nn.Module, ABC):
    """A network of images that a purifier uses, trained from pixels alone.

    Attributes:
        kind: its row in the registry, which a file of weights names.
        resolution: (C,H,W) of the images.
        temperature: of its draws where it has one, else 1.
        helper: prefix of the weights that the training alone needs, such as those of a critic; files leave them out.
    """

    kind: ClassVar[str]
    helper: ClassVar[str | None] = None
    resolution: tuple[int, int, int]
    temperature: float = 1.0

    @property
    @abstractmethod
    def configuration(self) -> dict[str, Any]:
        """The sizes that build this network again; plain JSON data."""

    @abstractmethod
    def figures(self, images: Tensor, *, seed: int) -> Mapping[str, Tensor]:
        """Figures (B,) of images (B,C,H,W) in [0,1]; less is better of the first, by which a training is judged."""

    @abstractmethod
    def rebuilt(self, images: Tensor, *, seed: int) -> Tensor:
        """What the network makes of images (B,C,H,W) in [0,1], the same shape; ``seed`` names its draws."""

    @abstractmethod
    def sampled(self, count: int, *, seed: int) -> Tensor:
        """Images (count,C,H,W) from noise alone, or for want of a prior from its latents alone."""

    @property
    def device(self) -> torch.device:
        """The device of the weights."""
        return next(self.parameters()).device

    @property
    def network(self) -> nn.Module:
        """The module whose weights are the model's: itself."""
        return self

    @property
    def description(self) -> dict[str, Any]:
        """The entry of the generator in a run's records; plain JSON data."""
        return {"generator": self.kind, "configuration": self.configuration, "temperature": self.temperature}

    def fingerprint(self) -> str:
        """sha256 (hex) over the names, types, shapes and bytes of the weights."""
        return fingerprint(self)

    def weights(self) -> dict[str, Tensor]:
        """The state dict without what the training alone needs."""
        state = self.state_dict()
        return {name: value for name, value in state.items() if not (self.helper and name.startswith(self.helper))}

    def save(self, path: str | Path, *, half: bool = False) -> None:
        """Write safetensors, whole or not at all, equal bytes for equal weights.

        Args:
            half: matrices and kernels as float16, half the size.
        """
        stored = {"version": __version__, "generator": self.kind, "configuration": self.configuration}
        written = {}
        for name, value in self.weights().items():
            value = value.detach().cpu()
            written[name] = (value.half() if half and value.ndim > 1 else value).contiguous()
        with atomic(Path(path)) as temporary:
            save_file(written, temporary, metadata={METADATA_KEY: json.dumps(stored, sort_keys=True)})

    @classmethod
    def load(cls, path: str | Path, *, shipped: str | None = None, **settings: Any) -> Self:
        """A frozen network in eval mode.

        Args:
            path: .safetensors of ``train-generator``; or a .pt of a bare state dict, where it tells the sizes.
            shipped: name of the package's own file that ``path="shipped"`` stands for.
            settings: of the constructor, beside its configuration.

        Raises:
            UserError: no such file, damaged, or of another network.
        """
        found = find_weights(path, shipped)
        if found.suffix == ".safetensors":
            stored, tensors = read_safetensors(found)
            if stored.get("generator") != cls.kind:
                held = stored.get("generator", "no generator")
                raise UserError(f"checkpoint {found} is of {held!r}: expected one of the generator {cls.kind!r}.")
            configuration = stored.get("configuration")
        else:
            tensors = _bare(found)
            configuration = cls.sizes_of(tensors)
        state = {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}
        if not isinstance(configuration, Mapping):
            raise UserError(
                f"checkpoint {found} does not say its sizes, and they cannot be told: it is of no {cls.kind}."
            )
        try:
            with torch.device("meta"):
                model = cls(configuration, **settings)
        except (TypeError, ValueError, AttributeError, KeyError, IndexError, OverflowError) as error:
            raise UserError(f"the configuration in checkpoint {found} describes no {cls.kind} ({error}).") from error
        expected = model.state_dict()
        wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
        odd = [name for name in state if name not in expected]
        if wrong or odd:
            raise UserError(
                f"checkpoint {found} is of no {cls.kind} of these sizes: {(wrong + odd)[0]} "
                f"{'lacks or has another shape' if wrong else 'is none of its weights'}."
            )
        check_numbers(found, state, expected)
        model.load_state_dict(state, assign=True)
        return model.requires_grad_(False).eval()

    @classmethod
    def sizes_of(cls, state: Mapping[str, Tensor]) -> Mapping[str, Any] | None:
        """The configuration that a bare state dict has the shapes of; None where they do not tell."""
        return None


def _bare(path: Path) -> dict[str, Tensor]:
    """The state dict that a ``torch.save`` file is, or has under ``state_dict``."""
    content = read_torch(path, mmap=True)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"checkpoint {path} holds no bare table of weights.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
