"""What is installed beside the package and which data are there; what each missing one gives, and what brings it."""

import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from robustcli.config import groups as config_groups

# Extras of a user and what each gives; the others of pyproject.toml are those of a developer.
EXTRAS = {
    "view": "robustcli view",
    "hf": "model=transformers, candidates=masked_lm, attack=bert, augment=llm, backtranslate and captioner",
    "diffusion": "augment=text2image and image2image, purifier=diffpure with a UNet of diffusers",
    "tracking": "tracker=tensorboard and wandb",
    "zero-shot": "templates= and class_names= of clip-benchmark",
    "wordnet": "augment=synonyms augment.wordnet=FOLDER",
    "text": "self-BLEU in augment-quality",
    "hdf5": "dataset=pcam",
    "cluster": "hydra/launcher=submitit_slurm",
}
PROGRAMS = {
    "git": ("the commit of the sources in every manifest", "git"),
    "g++": ("trainer.compile=true", "g++"),
}
_PLACES = ("annotations", "root")  # keys of a data set that name its files


def extras() -> Iterator[tuple[str, str]]:
    """Name and state of each extra, of MLflow, which no extra holds, and of each program."""
    needs = _needs()
    for extra, gives in EXTRAS.items():
        if extra not in needs:
            yield extra, f"not known, no installed robustcli declares it; it gives {gives}"
            continue
        missing = [name for name in needs[extra] if not _installed(name)]
        remedy = f"pip install 'robustcli[{extra}]'"
        yield extra, _state(not missing, f"{gives}: {remedy}", f" ({', '.join(missing)})")
    mlflow = _installed("mlflow-skinny") or _installed("mlflow")
    yield "mlflow", _state(mlflow, "tracker=mlflow: pip install mlflow-skinny")
    for program, (gives, package) in PROGRAMS.items():
        yield program, _state(shutil.which(program) is not None, f"{gives}: apt install {package}")


def datasets() -> Iterator[tuple[str, str]]:
    """The data sets that the package brings, those that lie where their files say, and those that do not."""
    embedded, missing, own = list[str](), list[str](), list[str]()
    for file in sorted((config_groups.conf_directory() / "dataset").glob("*.yaml")):
        node: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        places = [Path(node[key]) for key in _PLACES if isinstance(node.get(key), str) and node[key] != "???"]
        if "Nothing to download" in config_groups.summary(file):
            embedded.append(file.stem)
        elif not places:
            own.append(file.stem)
        elif all(place.exists() for place in places):
            yield file.stem, f"yes, {places[-1]}"
        else:
            missing.append(file.stem)
    yield "embedded", ", ".join(embedded)
    yield "not here", f"{', '.join(missing)}: data/NAME of the working folder, or dataset.root=FOLDER"
    yield "of your own", f"{', '.join(own)}: `robustcli list dataset` says what each of all of them takes"


def _needs() -> dict[str, list[str]]:
    """The packages of each extra, as the installed package declares them; empty where none is installed."""
    found: dict[str, list[str]] = {}
    for line in (metadata.requires("robustcli") or ()) if _installed("robustcli") else ():
        if match := re.match(r"([\w.-]+).*;.*extra == ['\"]([\w-]+)['\"]", line):
            found.setdefault(match[2], []).append(match[1])
    return found


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _state(present: bool, gives: str, missing: str = "") -> str:
    return "yes" if present else f"no{missing}; it gives {gives}"
