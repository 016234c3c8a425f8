"""Provenance of a run: code, packages, machine and the state of torch, as plain data for its manifest."""

import ast
import hashlib
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from robustcli import __version__

PACKAGES = (
    "torch",
    "torchvision",
    "open_clip_torch",
    "torchattacks",
    "timm",
    "transformers",
    "safetensors",
    "hydra-core",
    "omegaconf",
    "numpy",
    "optuna",
    "pandas",
    "pyarrow",
    "scipy",
    "webdataset",
)
_PACKAGE_ROOT = Path(__file__).resolve().parents[1]


def code() -> dict[str, Any]:
    """Version, git commit and dirty flag (None outside a git tree) and the sha256 of the package's own sources.

    The hash of the sources tells two dirty trees apart, and two wheels of the same version.
    """
    commit, dirty = _git_state(_PACKAGE_ROOT)
    return {"version": __version__, "commit": commit, "dirty": dirty, "sha256": source_hash(_PACKAGE_ROOT)}


def source_hash(root: Path) -> str:
    """sha256 over the relative names and bytes of all Python files under ``root``."""
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()}\0{len(content)}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def input_files(config: Mapping[Any, Any]) -> dict[str, str]:
    """sha256 of every file that a config names, by dotted key: tables of words, alphas, weights; and of the user's own
    Python files behind its targets, as ``code.<name>``.

    Left out are those of the data set, whose content has a fingerprint of its own, and ``resume``.
    """
    read = {key: value for key, value in config.items() if key not in ("dataset", "resume")}
    paths = {key: Path(text).expanduser() for key, text in _texts(read)}
    found = {key: file_hash(path) for key, path in paths.items() if _is_file(path)}
    targets = [text for key, text in _texts(config) if key.rpartition(".")[2] == "_target_"]
    return found | {f"code.{path.name}": file_hash(path) for target in targets for path in _own_sources(target)}


def _own_sources(target: str) -> list[Path]:
    """Python files of a user's own behind a dotted path: its module, and what that imports from its own folder."""
    module = target.rpartition(".")[0]
    if module.partition(".")[0] in (__name__.partition(".")[0], *sys.stdlib_module_names):
        return []
    found: dict[Path, None] = {}
    wanted = [path for name in _prefixes(module) if (path := _source_of(name)) is not None][:1]
    while wanted:
        path = wanted.pop()
        if path not in found:
            found[path] = None
            names = _imported(path)
            wanted += [beside for name in names if (beside := path.parent / f"{name}.py").is_file()]
    return sorted(found)


def _prefixes(module: str) -> list[str]:
    """``a.b.c``, ``a.b``, ``a``: a target may name a class within a class."""
    parts = module.split(".")
    return [".".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _source_of(module: str) -> Path | None:
    """The file of a module that no installed package has; None where there is none."""
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    path = None if spec is None or not spec.has_location or spec.origin is None else Path(spec.origin).resolve()
    installed = path is None or {"site-packages", "dist-packages"} & set(path.parts)
    return None if installed else path


def _imported(path: Path) -> set[str]:
    """First names of the modules that a Python file imports; none for one that is no Python."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return set()
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {node.module.partition(".")[0]} if node.module else {alias.name for alias in node.names}
    return names


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """Every text in a config, with its dotted key."""
    if isinstance(content, str) and content:
        yield key, content
    elif isinstance(content, Mapping):
        for name, value in content.items():
            yield from _texts(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list | tuple):
        for place, value in enumerate(content):
            yield from _texts(value, f"{key}[{place}]")


def file_hash(path: Path) -> str:
    """sha256 (hex) over the bytes of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a text that is no path, too long for one
        return False


def _git_state(package: Path) -> tuple[str | None, bool | None]:
    # An installed wheel may lie inside somebody else's git tree (a .venv in a project): only a tree that tracks the
    # package counts.
    if _git(package, "ls-files", "--error-unmatch", "__init__.py") is None:
        return None, None
    commit, changes = _git(package, "rev-parse", "HEAD"), _git(package, "status", "--porcelain")
    return commit, None if changes is None else bool(changes)


def _git(where: Path, *arguments: str) -> str | None:
    # GIT_DIR and its like are set inside git hooks and would point to another tree.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(where), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, env=environment, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def packages() -> dict[str, str | None]:
    """Versions of Python and of the packages that can change a number (None: not installed), without importing them."""
    return {"python": platform.python_version()} | {name: _version(name) for name in PACKAGES}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def machine() -> dict[str, Any]:
    """Platform, host, processor, cores (present and usable) and memory in GiB."""
    return {
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def torch_state() -> dict[str, Any]:
    """Threads, CPU capability and accelerator of torch: equal bits hold only for equal values of these."""
    import torch

    cuda = torch.cuda.is_available()
    return {
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda if cuda else None,
        "cuda_device": torch.cuda.get_device_name() if cuda else None,
    }


def peak_memory() -> dict[str, float | None]:
    """Largest memory in MiB: of this process since it began (all its jobs), and of CUDA since the run began."""
    import resource

    import torch

    # ru_maxrss is in bytes on macOS and in KiB elsewhere.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "process_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1),
        "cuda_mib": round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None,
    }


def reset_peak_memory() -> None:
    """Reset the peak of CUDA memory: the jobs of a sweep share a process, and with it the counter."""
    import torch

    if torch.cuda.max_memory_allocated() > 0:  # else CUDA is not in use yet, and resetting would fail
        torch.cuda.reset_peak_memory_stats()
