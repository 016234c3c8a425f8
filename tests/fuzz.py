"""Fuzzing: seeded inputs as no user should write them, each of which ends in a result or in one sentence.

Run by ``make fuzz``. An input fails where anything but a `UserError` comes out, where it takes longer than `SECONDS`,
or where code of a file is run. Files go to their readers, command lines to the composition and its checks, and each
tenth to ``validate``, so that thousands take minutes. Exit codes: 0, all end well; 1, some do not.
"""

import argparse
import io
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from robustcli.cli.commands import COMMANDS
from robustcli.cli.launch import one_sentence, written_out
from robustcli.cli.validate import validate
from robustcli.config import groups as config_groups
from robustcli.config.checks import check
from robustcli.config.compose import compose, keys_of
from robustcli.data import CaptionTable, ClassArrays, ClassFolders, KarpathyJSON
from robustcli.defenses.purification.alphas import schedule
from robustcli.models.factory import restore
from robustcli.models.generators import load_generator
from robustcli.models.weights import METADATA_KEY, read_safetensors
from robustcli.utils.errors import UserError
from robustcli.utils.words import read_table

SECONDS = 10
VALUES = (
    *("", "null", "true", "off", "nan", "inf", "-1", "0", "1", "1e400", "99999999999999999999", "2147483648", "0.5"),
    *("[]", "[1,a]", "{}", "{a: 1}", "{_target_: os.getcwd}", "'😀'", "${seed}", "${nowhere}", "???", "/dev/zero"),
    *("/dev/null", ".", "~", "a,b", "'a b'", "[[[[1]]]]", "os.getcwd", "robustcli.attacks.PGD", "'\\x00'", "café"),
)
LEAVES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    10**9,
    10**30,
    1.5,
    "",
    "a",
    "train",
    "0.png",
    "\ud800",
    "\0",
    [],
    {},
    [[]],
)


class Ran:
    """An object whose unpickling would leave a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def command_line(draw: random.Random, place: Path) -> None:
    """One to three overrides of a command's keys or groups."""
    command = draw.choice(list(COMMANDS))
    words = [
        f"{draw.choice(['', '', '', '+', '++', '~'])}{draw.choice(_keys(command))}" for _ in range(draw.randint(1, 3))
    ]
    words = [word if word.startswith("~") else f"{word}={draw.choice(VALUES)}" for word in words]
    if draw.random() < 0.1:
        words += ["dataset=digits", "model=digits"] if command not in ("train-mat", "train-generator") else []
        validate(command, words)
        return
    with one_sentence(command, words):
        composed = compose(command, [word for word in written_out(command, words) if not word.startswith("-")])
    check(composed)


@cache
def _keys(command: str) -> list[str]:
    return [*keys_of(command, []), *config_groups.groups_of(command), "nokey", "a.b.c", "hydra.run.dir"]


def config_directory(draw: random.Random, place: Path) -> None:
    """A group of a user's own with a damaged file."""
    file = place / "dataset" / "mine.yaml"
    file.parent.mkdir()
    target = draw.choice(["robustcli.data.Digits", "os.getcwd", "no.such", "1", "[a]"])
    text = f"_target_: {target}\nseed: 0\nx: &x [1, 2]\n"
    file.write_bytes(_damaged(draw, text.encode() + json.dumps({"y": _tree(draw)}).encode()))
    words = ["--config-dir", str(place), "dataset=mine"]
    with one_sentence("evaluate", words):
        check(compose("evaluate", written_out("evaluate", words)[2:], words))


def captions_json(draw: random.Random, place: Path) -> None:
    """Captions in either form of JSON, with leaves of other types or damaged bytes."""
    rows: Any = [{"image": f"{n}.png", "caption": ["a dog"]} for n in range(3)]
    if draw.random() < 0.5:
        rows = {"images": [{"filename": "0.png", "split": "test", "sentences": [{"raw": "a dog"}]} for _ in range(2)]}
    (place / "a_test.json").write_bytes(_damaged(draw, json.dumps(_changed(draw, rows)).encode()))
    _picture(draw, place / "0.png")
    KarpathyJSON(place / "a_test.json", place, split="test", image_size=8, on_error=draw.choice(["raise", "skip"]))


def captions_csv(draw: random.Random, place: Path) -> None:
    """A table of captions with odd separators, quotation marks and bytes."""
    cells = ("0.png", "a dog", '"', '""', "a,b", "", "\t", "../x", "/etc/passwd", "😀", "\0", "x" * 200_000)
    lines = ["image,caption", *(",".join(draw.choice(cells) for _ in range(draw.randint(1, 3))) for _ in range(4))]
    (place / "a_test.csv").write_bytes(_damaged(draw, "\n".join(lines).encode()))
    _picture(draw, place / "0.png")
    CaptionTable(place / "a_test.csv", place, split="test", image_size=8, on_error=draw.choice(["raise", "skip"]))


def arrays(draw: random.Random, place: Path) -> None:
    """An npz with scalars, objects, odd shapes and types, or damaged bytes."""
    mark = place / "ran"
    odd: list[Any] = [
        np.uint8(1),
        np.zeros((0, 8, 8), "u1"),
        np.array([Ran(mark)], dtype=object),
        np.zeros((2, 8), "c8"),
    ]
    odd += [np.full((4, 8, 8), np.nan), np.zeros((4, 8, 8), "M8[s]"), np.zeros(4, "U3"), np.zeros((4, 8, 8, 3), "f4")]
    images = draw.choice([*odd, np.zeros((4, 8, 8), "u1")])
    labels = draw.choice([*odd, np.arange(4), np.full(4, -1), np.full(4, 2**63, "u8")])
    np.savez(place / "a.npz", images=images, labels=labels, ids=draw.choice([*odd, np.arange(4)]))
    (place / "a.npz").write_bytes(_damaged(draw, (place / "a.npz").read_bytes()))
    ids = draw.choice([None, "ids"])
    ClassArrays(place / "a.npz", split="test", classes=draw.choice([4, 2, ["a"] * 4]), holds="test", ids=ids)


def pictures(draw: random.Random, place: Path) -> None:
    """Folders of classes with damaged and odd images."""
    for name in ("cat", "dog"):
        (place / "test" / name).mkdir(parents=True)
        for number in range(2):
            _picture(draw, place / "test" / name / f"{number}{draw.choice(['.png', '.jpg', '.gif', '.txt'])}")
    ClassFolders(place, split="test", classes=["cat", "dog"], image_size=8, on_error=draw.choice(["raise", "skip"]))


def checkpoints(draw: random.Random, place: Path) -> None:
    """Weights with odd metadata, names and types, or damaged bytes, read as those of a model and of a generator."""
    path = place / draw.choice(["a.safetensors", "a.pt"])
    if path.suffix == ".safetensors":
        name = draw.choice(["tiny_digits", "nvae_digits", "tiny_scenes"])
        stored, tensors = _shipped(name)
        described = stored if draw.random() < 0.2 else _changed(draw, stored)
        text = draw.choice(["{", "[" * 100_000, "1", '""']) if draw.random() < 0.1 else json.dumps(described)
        save_file(tensors if draw.random() < 0.8 else {"a": torch.zeros(1)}, path, metadata={METADATA_KEY: text})
    else:
        odd = [Ran(place / "ran"), 1, [torch.zeros(1)], {1: torch.zeros(1)}, {"state_dict": {2: torch.zeros(1)}}]
        odd += [
            {"configuration": LEAVES[draw.randrange(len(LEAVES))], "state_dict": {}},
            {"a": {"b": torch.zeros(2)}},
            {},
        ]
        torch.save(draw.choice(odd), path, pickle_protocol=draw.choice([2, 4]))
        if draw.random() < 0.2:
            path.write_bytes(pickle.dumps(draw.choice(odd)))
    path.write_bytes(_damaged(draw, path.read_bytes()))
    draw.choice([restore, load_generator])(path)


@cache
def _shipped(name: str) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    return read_safetensors(Path(sys.modules["robustcli"].__path__[0]) / "assets" / f"{name}.safetensors")


def numbers(draw: random.Random, place: Path) -> None:
    """A file of alphas, or a table of synonyms."""
    path = place / draw.choice(["a.json", "a.txt", "a.csv", "a.npy"])
    if path.suffix == ".npy":
        np.save(path, draw.choice([np.array(1), np.array([Ran(place / "ran")], dtype=object), np.full(2, np.nan)]))
    else:
        path.write_text(json.dumps(_changed(draw, draw.choice([[0.5, 1], {"alphas": [0, 1]}, {"word": ["other"]}]))))
    path.write_bytes(_damaged(draw, path.read_bytes()))
    if draw.random() < 0.5:
        schedule(path, 2)
    else:
        read_table(path, "candidates.table")


KINDS: Mapping[str, Callable[[random.Random, Path], None]] = {
    kind.__name__: kind
    for kind in (command_line, config_directory, captions_json, captions_csv, arrays, pictures, checkpoints, numbers)
}


def _picture(draw: random.Random, path: Path) -> None:
    mode = draw.choice(["RGB", "L", "P", "RGBA", "1", "CMYK"])
    size = draw.choice([(8, 8), (1, 1), (1, 5000), (9, 16)])
    content = io.BytesIO()
    Image.new(mode, size).save(content, "TIFF" if mode == "CMYK" else "PNG")
    path.write_bytes(_damaged(draw, content.getvalue()))


def _damaged(draw: random.Random, content: bytes) -> bytes:
    """The bytes as they are (mostly), cut off, with changed bytes, doubled, or none."""
    changed = bytearray(content)
    match draw.randrange(10):
        case 0:
            return content[: draw.randrange(len(content) + 1)]
        case 1:
            for _ in range(draw.randint(1, 8)):
                changed[draw.randrange(len(changed))] = draw.randrange(256)
        case 2:
            return draw.choice([b"", content * 2, bytes(len(content)), b"\xff\xfe" + content, content[::-1]])
    return bytes(changed)


def _tree(draw: random.Random, depth: int = 0) -> Any:
    if depth > 4 or draw.random() < 0.4:
        return draw.choice(LEAVES)
    parts = [_tree(draw, depth + 1) for _ in range(draw.randint(0, 3))]
    return parts if draw.random() < 0.5 else {str(draw.choice(LEAVES)): part for part in parts}


def _changed(draw: random.Random, content: Any) -> Any:
    """The content with one of its nodes replaced or removed, or nested very deeply."""
    if not isinstance(content, dict | list) or not content or draw.random() < 0.15:
        if draw.random() < 0.03:
            return json.loads("[" * 900 + "]" * 900)
        return _tree(draw)
    copy: Any = dict(content) if isinstance(content, dict) else list(content)
    key = draw.choice(list(copy)) if isinstance(copy, dict) else draw.randrange(len(copy))
    if draw.random() < 0.15:
        del copy[key]
    else:
        copy[key] = _changed(draw, copy[key])
    return copy


@contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"took longer than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def failure(seed: int, kind: str) -> str:
    """What went wrong with the input of ``seed``; empty where it ended as it should."""
    draw = random.Random(f"{kind} {seed}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _time_limit(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                KINDS[kind](draw, Path(folder))
        except UserError as error:
            if len(str(error).splitlines()) != 1:
                return f"{kind} {seed}: not one sentence: {error!r:.300}"
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            return f"{kind} {seed}: {type(error).__name__}: {error!s:.200} ({where.filename}:{where.lineno})"
        if (Path(folder) / "ran").exists():
            return f"{kind} {seed}: code of the file was run"
    return ""


def main(arguments: list[str] | None = None) -> int:
    """Put ``--inputs`` inputs to their readers and print those that fail; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", choices=KINDS)
    asked = parser.parse_args(arguments)
    kinds, begin = [asked.kind] if asked.kind else list(KINDS), time.monotonic()
    failures = []
    with tempfile.TemporaryDirectory() as cache_folder:
        os.environ["ROBUSTCLI_CACHE"] = cache_folder
        for number in range(asked.inputs):
            if said := failure(asked.seed + number // len(kinds), kinds[number % len(kinds)]):
                failures.append(said)
                print(said, flush=True)
    print(f"{len(failures)} of {asked.inputs} inputs failed, in {time.monotonic() - begin:.0f} s", flush=True)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
