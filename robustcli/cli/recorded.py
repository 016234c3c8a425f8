"""Records of a run directory, which another may have written: read as data, with a sentence for what is damaged."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from robustcli.config.overrides import key, value
from robustcli.utils import files
from robustcli.utils.errors import UserError

TRUST = "--trust"
# Overrides of Hydra itself that start nothing and write nowhere else; others reach loggers, callbacks and launchers,
# which name code and commands (submitit's `setup`) of their own.
_HARMLESS = re.compile(
    r"hydra/(launcher|sweeper|sweeper/sampler)|hydra\.(mode|verbose|run\.dir|sweep\.(dir|subdir)|launcher\.n_jobs"
    r"|sweeper\.(n_trials|n_jobs|direction|max_batch_size|study_name|params\.[\w./@]+))"
)
# What a job asks Slurm for, harmless as numbers and plain names: submitit writes them into a script of a shell.
_ASKED_OF_SLURM = re.compile(
    r"hydra\.launcher\.(timeout_min|max_num_timeout|signal_delay_s|array_parallelism|nodes|tasks_per_node|cpus_per_task"
    r"|cpus_per_gpu|gpus_per_node|gpus_per_task|gres|mem_gb|mem_per_cpu|mem_per_gpu|partition|qos|account|constraint)"
)


def read_mapping(file: Path) -> dict[str, Any]:
    """The mapping in a JSON or YAML file of a run.

    Raises:
        UserError: the file is missing, cannot be read, or holds anything else.
    """
    content = _read(file)
    if not isinstance(content, dict):
        raise _damaged(file, "it holds no mapping")
    return content


def read_overrides(file: Path, *names: str) -> list[str]:
    """The overrides in a YAML file of a run: its list, or those under ``names`` of a mapping.

    Raises:
        UserError: the file is missing, cannot be read, or holds no list of overrides.
    """
    content = _read(file)
    for name in names:
        content = content.get(name) if isinstance(content, dict) else None
    # A word like `--config-dir=/tmp` would be taken for a flag of the command line.
    if not isinstance(content, list) or any(not isinstance(item, str) or item[:1] in ("-", "") for item in content):
        raise _damaged(file, f"{'.'.join(names) or 'it'} is no list of overrides such as seed=1")
    return content


def read_entry(manifest: dict[str, Any], name: str, kind: type, directory: Path) -> Any:
    """The entry ``name`` of a manifest.

    Raises:
        UserError: it is missing or no ``kind``.
    """
    if not isinstance(manifest.get(name), kind):
        raise _damaged(directory / "manifest.json", f"its {name!r} is missing or of the wrong type")
    return manifest[name]


def refuse_untrusted(directory: Path, words: Sequence[str]) -> None:
    """Check that none of the recorded ``words`` reaches Hydra's own machinery or a config directory.

    Targets in the composed config are checked where it is known as a whole, see `robustcli.config.checks.check`.

    Raises:
        UserError: one does.
    """
    wrong = [word for word in words if word.startswith("-") or ("hydra" in key(word) and not _is_harmless(word))]
    if wrong:
        raise UserError(
            f"{directory} sets {', '.join(wrong)}, which can run code from outside of robustcli with your rights: read "
            f"it, and add {TRUST} if its author is one whom you trust."
        )


def _is_harmless(word: str) -> bool:
    leads_out = key(word) == "hydra.sweep.subdir" and (".." in word or value(word).startswith("/"))
    if _ASKED_OF_SLURM.fullmatch(key(word)):
        return re.fullmatch(r"[\w.,:-]+", value(word)) is not None
    return _HARMLESS.fullmatch(key(word)) is not None and not leads_out


def _read(file: Path) -> Any:
    try:
        return files.read_json(file) if file.suffix == ".json" else files.read_yaml(file)
    except OSError as error:
        raise _damaged(file, error.strerror or type(error).__name__) from error
    except (UnicodeDecodeError, json.JSONDecodeError, yaml.YAMLError, RecursionError) as error:
        raise _damaged(file, f"it is no {file.suffix[1:].upper()} in UTF-8") from error


def _damaged(file: Path, flaw: str) -> UserError:
    return UserError(f"{file} cannot be used ({flaw}): the directory is damaged; begin a run of its own instead.")
