"""``python -m benchmarks [--quick] [NAME ...]``, or ``python -m benchmarks gpu_check [--tiny]``."""

import argparse
import importlib
import shlex
import sys
from collections.abc import Sequence

import torch
from rich.console import Console

from benchmarks.report import show

NAMES = (
    "mat_step",
    "text_attack",
    "data",
    "gallery",
    "augment_quality",
    "towers",
    "compiled",
    "minimum_norm",
    "bounded",
    "zero_shot",
    "purification",
    "augmentation",
    "processes",
    "together",
    "rivals",
)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the benchmarks that are asked for, default all, and print a table of each."""
    given = sys.argv[1:] if argv is None else list(argv)
    if given[:1] == ["gpu_check"]:  # a table of its own kind
        sys.exit(importlib.import_module("benchmarks.gpu_check").main(given[1:]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Time the parts of robustcli.")
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="small sizes, two repeats: does it run?")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of torch (default: 1)")
    options = parser.parse_args(given)
    for name in options.names:
        if name not in NAMES:
            parser.error(f"{name!r} is no benchmark: choose one of {', '.join(NAMES)}")
    torch.set_num_threads(options.threads)
    flags = [*(["--quick"] if options.quick else []), *([f"--threads={options.threads}"] * (options.threads > 1))]
    for name in options.names or NAMES:
        rows = importlib.import_module(f"benchmarks.{name}").run(quick=options.quick)
        show(name, rows, shlex.join(["python", "-m", "benchmarks", name, *flags]), Console())


if __name__ == "__main__":
    main()
