"""Adversarial defences for vision and vision-language models, and the honest measurement of any defence.

In a notebook: `robustcli.evaluate` judges a model under attacks, `robustcli.load_run` opens the directory of a run.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustcli.api import EvaluationResult, evaluate
    from robustcli.attacks.core.threat import ThreatModel
    from robustcli.runs.finished import LoadedRun, load_run
    from robustcli.utils.errors import UserError

__version__ = "0.1.0"

__all__ = ["EvaluationResult", "LoadedRun", "ThreatModel", "UserError", "__version__", "evaluate", "load_run"]

# Imported when first asked for: torch and pandas take seconds, and `robustcli --help` needs neither.
_HOMES = {
    "EvaluationResult": "robustcli.api",
    "LoadedRun": "robustcli.runs.finished",
    "ThreatModel": "robustcli.attacks.core.threat",
    "UserError": "robustcli.utils.errors",
    "evaluate": "robustcli.api",
    "load_run": "robustcli.runs.finished",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
