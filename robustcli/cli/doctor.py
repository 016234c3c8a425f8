"""``robustcli doctor``: versions, devices, threads, cache, extras and data, for a look or for a report of a fault."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from robustcli.cli import readiness
from robustcli.cli.listing import print_table
from robustcli.runs import provenance
from robustcli.utils.cache import cache_root, leftovers
from robustcli.utils.files import TEMPORARY

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")  # what else decides about them


def print_doctor() -> None:
    """Print what this installation is made of; nothing is made or changed."""
    code = provenance.code()
    commit = f", commit {code['commit'][:12]}{' with changes' if code['dirty'] else ''}" if code["commit"] else ""
    versions = {"robustcli": code["version"] + commit, **provenance.packages()}
    print_table("versions", ((name, version or "not installed") for name, version in versions.items()))
    print_table("devices", _devices())
    print_table("cache", _cache(cache_root()))
    print_table("extras and programs", readiness.extras())
    print_table("data", readiness.datasets())


def _devices() -> Iterator[tuple[str, str]]:
    import torch

    machine = provenance.machine()
    yield "cpu", f"{machine['cpu']}, {machine['usable_cores']} of {machine['cores']} cores usable"
    said = ", ".join(f"{name}={os.environ[name]}" for name in _THREADS if name in os.environ)
    yield "threads", f"1 in each run (threads=N sets another){f', {said}' if said else ''}"
    yield "memory", f"{machine['memory_gib']} GiB"
    if not torch.cuda.is_available():
        yield "cuda", "no GPU that torch can use" + ("" if torch.version.cuda else " (torch is built for CPUs alone)")
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        yield f"cuda:{number}", f"{card.name}, {card.total_memory / 2**30:.1f} GiB, CUDA {torch.version.cuda}"


def _cache(root: Path) -> Iterator[tuple[str, str]]:
    chosen = "ROBUSTCLI_CACHE" if os.environ.get("ROBUSTCLI_CACHE") else "the platform's; ROBUSTCLI_CACHE sets another"
    yield "place", f"{root} ({chosen})"
    existing = next(each for each in (root, *root.absolute().parents) if each.exists())
    fine = existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)
    yield "can be written", "yes" if fine else f"NO: {existing} is no folder that you may write to"
    if fine:
        yield "free", _size(shutil.disk_usage(existing).free)
    for folder in sorted(path for path in root.glob("*") if path.is_dir()):
        kept = [path for path in folder.iterdir() if path.suffix != ".lock" and not path.name.startswith(TEMPORARY)]
        left = leftovers(folder)
        said = f", {len(left)} being written or left by killed runs ({_size(_bytes(left))})" if left else ""
        yield folder.name, f"{_size(_bytes(kept))} in {len(kept)} entries{said}"


def _bytes(paths: list[Path]) -> int:
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
