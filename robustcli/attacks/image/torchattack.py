"""The attacks of torchattacks (Kim 2020) by name, isolated: their side effects on seeds, modes and the terminal stay
inside.

Shapes: B batch, C channels, H height, W width, Y classes.
"""

import importlib
import io
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from functools import cached_property
from inspect import Parameter, signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from robustcli.attacks.adaptive.bpda import BPDA
from robustcli.attacks.core.base import ClassifierAttack
from robustcli.attacks.core.counter import QueryCounter, spread
from robustcli.attacks.core.oracle import LogitOracle
from robustcli.attacks.core.passes import Passes, Problem, both
from robustcli.attacks.core.threat import ThreatModel
from robustcli.utils.errors import UserError
from robustcli.utils.numbers import Number, parse_number
from robustcli.utils.seeding import derive_seed
from robustcli.utils.suggest import did_you_mean

_NODE = "attack.params"
_WRAPPERS = {
    "MultiAttack": "give each attack as one of attacks=..., of which the table takes the worst",
    "LGV": "train the models that it needs first, and use one as evaluation.surrogate",
}
# Attacks that bound or minimise L2, or L0 and L1, which are measured in L2; any other bounds L-inf.
_L2 = ("CW", "PGDL2", "PGDRSL2", "DeepFool", "EADEN", "GN")
_SPARSE = ("EADL1", "SparseFool", "OnePixel", "Pixle", "JSMA")
_RADII = ("eps", "max_epsilon")
_BASELINES = ("VANILA", "GN", "FGSM", "FFGSM", "RFGSM")  # nothing, noise, and one step
_ONE_STEP = ("FGSM", "FFGSM")
_STEPS = ("BIM", "RFGSM", "PGD", "PGDL2", "MIFGSM")  # a forward and a backward pass each
_FEWEST_CLASSES = {"APGDT": 4, "AutoAttack": 4}  # the targeted DLR sorts the highest four
_COLOURED = ("TIFGSM", "PIFGSM", "PIFGSMPP")  # blur by kernels of three channels
_NORMS = {"linf": "Linf", "l2": "L2"}  # FAB's L1 stops with an error in 3.5.1


@dataclass(frozen=True, kw_only=True)
class TorchAttack(ClassifierAttack):
    """An attack class of torchattacks 3.5.1 on a classifier, with its own defaults.

    Its draws come from global generators, seeded from ``seed``, the name and the ids of the batch and restored at the
    end: the same batch gives the same result, but a sample's result depends on its batch, unlike with our own attacks.
    Its iterates outside of [0,1] are clamped before the model sees them. A NaN in its result gives the
    clean image. The counts are those of the batch, shared out evenly.

    Args:
        name: of the class, such as ``PGDL2``; `names` lists them.
        params: of its constructor but for norm and eps, such as ``{"steps": 20}``; numbers may be fractions.
        norm, eps: see `ClassifierAttack`; None: those of the class. A class without an eps is a search
            for the smallest perturbation, or has no bound, and its success counts within the radius of the threat
            model alone; that of attacks on L0 and L1 is measured in ``l2`` by default.
        seed: see `ClassifierAttack`.

    Raises:
        UserError: an unknown name or parameter, with the nearest valid ones; a value that the class refuses.
    """

    name: str = field(default="PGD", kw_only=False)
    params: Mapping[str, Any] = field(default_factory=dict, kw_only=False)
    norm: str | None = None  # type: ignore[assignment]
    eps: Number | None = None

    def __post_init__(self) -> None:
        defaults = _defaults(_attack_class(self.name))
        self._store(params=_checked_params(self.name, defaults, self.params), norm=self.norm or self._own_norm)
        if self.eps is None and self._radius is not None:
            self._store(eps=defaults[self._radius])
        super().__post_init__()
        self.check(self.threat)

    @cached_property
    def _radius(self) -> str | None:
        """Name of the parameter that bounds the perturbation, if the class has one."""
        return next((key for key in _RADII if key in _defaults(_attack_class(self.name))), None)

    @cached_property
    def _own_norm(self) -> str:
        default = _defaults(_attack_class(self.name)).get("norm")
        return str(default).lower() if default is not None else "l2" if self.name in (*_L2, *_SPARSE) else "linf"

    @property
    def minimum_norm(self) -> bool:
        return self._radius is None

    @property
    def baseline(self) -> bool:
        return self.name in _BASELINES

    def passes(self, problem: Problem) -> Passes | None:
        if self.name in _ONE_STEP:
            return both(1)
        return both(self.steps) if self.name in _STEPS else None  # what others ask of the model stands in their code

    @property
    def steps(self) -> int:
        """Gradient steps of a class with a step size ``alpha``; 1 where it has no number of them."""
        return int(({"steps": 1} | _defaults(_attack_class(self.name)) | dict(self.params))["steps"])

    def step_size(self, eps: float) -> float:
        """Step size of a class with an ``alpha``, in units of the norm; ``eps``, one step across, of any other."""
        return float((_defaults(_attack_class(self.name)) | dict(self.params)).get("alpha", eps))

    def crosses(self, eps: float) -> bool:
        """True if all steps together reach from the clean image to the boundary of a ball of radius ``eps``, as far as
        the class shows.
        """
        return self.steps * self.step_size(eps) >= eps * (1 - 1e-9)

    def check(self, threat: ThreatModel) -> None:
        if self._radius is not None and threat.eps is None:
            raise UserError(f"threat.eps is null, but {self.name} of torchattacks needs a radius: give threat.eps.")
        takes_norm = "norm" in _defaults(_attack_class(self.name))
        if self._radius is not None and threat.norm != self._own_norm and not takes_norm:
            raise UserError(
                f"threat.norm is {threat.norm!r}, but {self.name} of torchattacks keeps a ball in {self._own_norm}: "
                f"choose threat.norm={self._own_norm} (and its threat.eps), or another attack.name."
            )
        self._try(threat)

    def search(
        self, oracle: LogitOracle, images: Tensor, labels: Tensor, sample_ids: Tensor, threat: ThreatModel
    ) -> Tensor:
        if self.name in _COLOURED and images.shape[1] != 3:
            raise UserError(
                f"attack.name={self.name} needs images of three channels, but they have {images.shape[1]}: choose "
                "another, such as attack.name=MIFGSM."
            )
        model = _CountedModel(oracle.model, images.device)
        seed = derive_seed(self.seed, "torchattacks", self.name, *sample_ids.tolist()) % 2**32
        with _isolated(seed), torch.enable_grad():
            attack = self._build(model, seed, self._class_count(oracle.model, images), threat)
            x_adv = attack(images.clone(), labels.clone()).detach().to(images)
        oracle.counter.add(model.spent(len(images)))
        not_finite = ~x_adv.isfinite().flatten(1).all(1)
        return torch.where(not_finite.view(-1, 1, 1, 1), images, x_adv).clamp(0, 1)

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

    def _build(self, model: nn.Module, seed: int, classes: int, threat: ThreatModel) -> Any:
        kind = _attack_class(self.name)
        parameters = _defaults(kind)
        ours: dict[str, Any] = {"seed": seed, "n_classes": classes, "norm": _NORMS[threat.norm]}
        ours |= {self._radius: threat.radius} if self._radius is not None else {}
        settings = {key: value for key, value in ours.items() if key in parameters} | dict(self.params)
        attack = kind(model, **settings)
        if self.name == "JSMA":  # its default target is the next class of ten
            attack.set_mode_targeted_by_function(lambda images, labels: (labels + 1) % classes, quiet=True)
        return attack

    def _try(self, threat: ThreatModel) -> None:
        """Build the attack once, so that a value that its constructor refuses is an error before any long work."""
        try:
            with _isolated(0):
                self._build(nn.Linear(1, 1), 0, 10, threat)
        except Exception as error:  # whatever a constructor of another project raises for a bad value
            reason = str(error) or type(error).__name__
            raise UserError(f"{_NODE} of {self.name} are refused by torchattacks: {reason}") from error


def names() -> list[str]:
    """Names of the attacks of torchattacks that need nothing but a model."""
    return [name for name in importlib.import_module("torchattacks").__all__ if name not in _WRAPPERS]


def _attack_class(name: str) -> Callable[..., Any]:
    if name in _WRAPPERS:
        raise UserError(f"attack.name is {name!r}, which is made of other attacks or models: {_WRAPPERS[name]}.")
    known = names()
    if name not in known:
        by_case = {each.lower(): each for each in known}
        near = f": did you mean {by_case[name.lower()]!r}?" if name.lower() in by_case else did_you_mean(name, known)
        raise UserError(f"attack.name is {name!r}, which torchattacks has not{near} (choices: {', '.join(known)})")
    attack: Callable[..., Any] = getattr(importlib.import_module("torchattacks"), name)
    return attack


def _defaults(attack: Callable[..., Any]) -> dict[str, Any]:
    """Parameters of an attack but for the model, with their defaults."""
    parameters = signature(attack).parameters
    return {
        name: each.default
        for name, each in parameters.items()
        if name != "model" and each.kind != Parameter.VAR_KEYWORD
    }


def _checked_params(name: str, known: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
    free = [key for key in known if key not in ("norm", *_RADII)]
    for key, value in params.items():
        if key in known and key not in free:
            own = f"norm={str(value).lower()}" if key == "norm" else f"eps={value}"
            raise UserError(
                f"{_NODE}.{key} is {value}, but an attack takes what it may change from the threat model: set "
                f"threat.{own} instead."
            )
        if key not in known:
            raise UserError(
                f"{_NODE}.{key} is no parameter of {name}{did_you_mean(key, free)} "
                f"(choices: {', '.join(free) or 'none at all'})"
            )
    return {key: _value(key, value, known[key]) for key, value in params.items()}


def _value(key: str, value: Any, default: Any) -> Any:
    """``value`` in the type that the class expects: fractions as numbers, norms as torchattacks spells them."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return type(default)(value) if isinstance(default, tuple | list) else list(value)
    if isinstance(default, bool) or not isinstance(default, int | float) or not isinstance(value, str):
        return value
    number = parse_number(key, value, node=_NODE)
    return int(number) if isinstance(default, int) and number.is_integer() else number


class _CountedModel(nn.Module):
    """Model as torchattacks sees it: passes are counted, and there are no parameters and no modes to change."""

    def __init__(self, model: Callable[[Tensor], Tensor], device: torch.device) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.empty(0, device=device), requires_grad=False)  # tells torchattacks the device
        self._model = (model,)  # in a tuple, out of reach of train() and eval()
        self._boxed = BPDA(lambda images: images.nan_to_num(0.5).clamp(0, 1))
        self._counts = {"queries": 0, "gradients": 0, "zero_gradients": 0, "nan_gradients": 0}
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        self._counts["queries"] += len(images)
        if not (images.requires_grad and torch.is_grad_enabled()):
            return self._model[0](self._boxed(images))
        images = images.view_as(images)
        images.register_hook(self._count)  # type: ignore[no-untyped-call]
        logits = self._model[0](self._boxed(images))
        # A model that cuts its graph has the gradient zero, as for our own searches.
        return logits if logits.requires_grad else logits + 0.0 * images.flatten(1).sum(1, keepdim=True)

    def spent(self, samples: int) -> QueryCounter:
        """Counts so far, in even shares of the samples."""
        return QueryCounter(**{name: spread(total, samples) for name, total in self._counts.items()})

    def _count(self, gradient: Tensor) -> None:
        size = gradient.flatten(1).abs().sum(1)
        self._counts["gradients"] += len(gradient)
        self._counts["zero_gradients"] += int((size == 0).sum())
        self._counts["nan_gradients"] += int((~size.isfinite()).sum())


@contextmanager
def _isolated(seed: int) -> Iterator[None]:
    """Context with the global generators of torch, numpy and Python seeded, then restored; nothing is printed."""
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
