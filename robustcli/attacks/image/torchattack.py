"""The attacks of torchattacks (Kim 2020) by name, isolated: what they do to seeds, modes and the terminal stays inside.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

import importlib
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.bpda import BPDA
from robustcli.attacks.adaptive.wrapped import book, spread
from robustcli.attacks.core.classifier import ClassifierAttack
from robustcli.attacks.core.oracle import LogitOracle, Meter
from robustcli.attacks.core.threat import L2, Linf, ball, parse_eps, parse_number
from robustcli.utils.errors import UserError
from robustcli.utils.seeding import derive_seed
from robustcli.utils.suggest import did_you_mean

_NODE = "attack.params"
_WRAPPERS = {
    "MultiAttack": "give each attack as a judge of its own, of which the table takes the worst",
    "LGV": "train the models that it needs first, and use one as attack.surrogate",
}
# The norm that an attack bounds or lowers; L-inf where it is in neither table, and that of L0 and L1 attacks is taken
# in L2.
_L2 = ("CW", "PGDL2", "PGDRSL2", "DeepFool", "EADEN", "GN")
_SPARSE = ("EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA")
_RADII = ("eps", "max_epsilon")
_FEWEST_CLASSES = {"APGDT": 4, "AutoAttack": 4}  # the targeted DLR sorts the highest four
_NORMS = {"linf": "Linf", "l2": "L2"}  # FAB's L1 stops with an error in 3.5.1


class TorchAttack(ClassifierAttack):
    """An attack class of torchattacks 3.5.1 on a classifier, with its own defaults.

    Its draws come from global generators, seeded from ``seed``, the name and the ids of the batch and put back at the
    end: the same batch gives the same result, but a sample's result depends on its batch, unlike with our own attacks.
    Images that it asks about outside of [0,1] are clamped before the model sees them. A NaN in its result gives the
    clean image. The counts are those of the batch, shared out evenly.

    Args:
        name: of the class, such as ``PGDL2``; `names` lists them.
        params: of its constructor, such as ``{"eps": "8/255", "steps": 20}``; numbers may be fractions.
        norm: ``linf`` or ``l2``, in which the change is measured, and where the class takes a norm, also its own;
            None: that of the class, which for attacks on L0 and L1 is ``l2``. The budget is the eps of the class;
            there is none where it has no eps or bounds another norm.
        seed: see `ClassifierAttack`.

    Raises:
        UserError: an unknown name or parameter, with the nearest valid ones; a value that the class refuses.
    """

    def __init__(
        self, name: str = "PGD", params: Mapping[str, Any] | None = None, *, norm: str | None = None, seed: int = 0
    ) -> None:
        self.name, self.seed = name, seed
        self._class = _attack_class(name)
        self.params = _checked_params(name, self._class, params or {})
        defaults = _defaults(self._class)
        if norm is not None and "norm" in defaults:
            self.params.setdefault("norm", _NORMS[ball(norm, 0.0).norm])
        own = str(self.params.get("norm", defaults.get("norm", _own_norm(name)))).lower()
        self.norm = ball(norm or (own if own in _NORMS else "l2"), 0.0).norm
        self.budget = self._radius(own, defaults)
        self._try()

    def mislead(self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor) -> Tensor:
        model = _Counted(oracle.model, images.device)
        seed = derive_seed(self.seed, "torchattacks", self.name, *sample_ids.tolist()) % 2**32
        with _isolated(seed), torch.enable_grad():
            attack = self._build(model, seed, self._class_count(oracle.model, images))
            found = attack(images.clone(), labels.clone()).detach().to(images)
        book(oracle.meter, model.spent(len(images)))
        broken = ~found.isfinite().flatten(1).all(1)
        return torch.where(broken.view(-1, 1, 1, 1), images, found).clamp(0, 1)

    def _radius(self, own: str, defaults: Mapping[str, Any]) -> Linf | L2 | None:
        keys = [key for key in _RADII if key in defaults]
        if not keys:
            return None
        key = keys[0]
        eps = parse_eps(self.params.get(key, defaults[key]), own, node=_NODE, key=key)
        return ball(own, eps) if own == self.norm else None

    def _class_count(self, model: Callable[[Tensor], Tensor], images: Tensor) -> int:
        with torch.no_grad():
            classes = int(model(images[:1]).shape[1])
        fewest = _FEWEST_CLASSES.get(self.name, 2)
        if classes < fewest:
            raise UserError(
                f"attack.name={self.name} needs {fewest} classes or more, but the model has {classes}: choose another, "
                "such as attack.name=APGD."
            )
        return classes

    def _build(self, model: nn.Module, seed: int, classes: int) -> Any:
        own = {"seed": seed, "n_classes": classes}
        known = _defaults(self._class)
        settings = {key: value for key, value in own.items() if key in known} | self.params
        attack = self._class(model, **settings)
        if self.name == "JSMA":  # it aims at the next class, and takes it that there are ten
            attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % classes, quiet=True)
        return attack

    def _try(self) -> None:
        """Builds the attack once, so that a value that it refuses is met before any long work."""
        try:
            with _isolated(0):
                self._build(nn.Linear(1, 1), 0, 10)
        except Exception as error:  # whatever a constructor of another project raises for a bad value
            reason = str(error) or type(error).__name__
            raise UserError(f"{_NODE} of {self.name} are refused by torchattacks: {reason}") from error


def names() -> list[str]:
    """The attacks that can be reached by name."""
    return [name for name in importlib.import_module("torchattacks").__all__ if name not in _WRAPPERS]


def _attack_class(name: str) -> Callable[..., Any]:
    if name in _WRAPPERS:
        raise UserError(f"attack.name is {name!r}, which is made of other attacks or models: {_WRAPPERS[name]}.")
    known = names()
    if name not in known:
        by_case = {each.lower(): each for each in known}
        near = f": did you mean {by_case[name.lower()]!r}?" if name.lower() in by_case else did_you_mean(name, known)
        raise UserError(f"attack.name is {name!r}, which torchattacks has not{near} (choices: {', '.join(known)})")
    found: Callable[..., Any] = getattr(importlib.import_module("torchattacks"), name)
    return found


def _defaults(attack: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of an attack but for the model, with their defaults."""
    found = signature(attack).parameters
    return {
        name: each.default for name, each in found.items() if name != "model" and each.kind != Parameter.VAR_KEYWORD
    }


def _checked_params(name: str, attack: Callable[..., Any], params: Mapping[str, Any]) -> dict[str, Any]:
    known = _defaults(attack)
    for key in params:
        if key not in known:
            raise UserError(
                f"{_NODE}.{key} is no parameter of {name}{did_you_mean(key, list(known))} "
                f"(choices: {', '.join(known) or 'none at all'})"
            )
    return {key: _value(key, value, known[key]) for key, value in params.items()}


def _value(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type that the class expects: fractions as numbers, norms as torchattacks spells them."""
    if key == "norm":
        if str(value).lower() not in _NORMS:
            raise UserError(f"{_NODE}.norm is {value!r}: choose one of {', '.join(_NORMS)}.")
        return _NORMS[str(value).lower()]
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(default)(value) if isinstance(default, tuple | list) else list(value)
    if isinstance(default, bool) or not isinstance(default, int | float) or not isinstance(value, str):
        return value
    number = parse_number(key, value, node=_NODE)
    return int(number) if isinstance(default, int) and number.is_integer() else number


def _own_norm(name: str) -> str:
    return "l2" if name in _L2 else "sparse" if name in _SPARSE else "linf"


class _Counted(nn.Module):
    """What torchattacks takes for the model: it has no parameters and no modes of its own to change, and counts."""

    def __init__(self, model: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)  # tells torchattacks the device
        self._model = (model,)  # in a tuple, out of reach of train() and eval()
        self._boxed = BPDA(lambda images: images.nan_to_num(0.5).clamp(0, 1))
        self._counts = {"queries": 0, "gradients": 0, "zero_gradients": 0, "nan_gradients": 0}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self._counts["queries"] += len(images)
        if images.requires_grad and torch.is_grad_enabled():
            images = images.view_as(images)
            images.register_hook(self._count)  # type: ignore[no-untyped-call]
        return self._model[0](self._boxed(images))

    def spent(self, samples: int) -> Meter:
        """The counts so far, shared out among the samples."""
        return Meter(**{name: spread(total, samples) for name, total in self._counts.items()})

    def _count(self, gradient: Tensor) -> None:
        size = gradient.flatten(1).abs().sum(1)
        self._counts["gradients"] += len(gradient)
        self._counts["zero_gradients"] += int((size == 0).sum())
        self._counts["nan_gradients"] += int((~size.isfinite()).sum())


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Global generators of torch, numpy and Python seeded inside and put back, and nothing printed."""
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    numbers, words = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=devices), redirect_stdout(io.StringIO()):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(numbers)
            random.setstate(words)
