"""Schedules of alphas, by name, by hand and from files."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from robustcli.defenses.purification.alphas import LEARNED, PRESETS, schedule
from robustcli.utils.errors import UserError

PAPER_LINEAR_GENDER = [
    *(0.05, 0.11, 0.16, 0.22, 0.27, 0.33, 0.38, 0.44, 0.50),
    *(0.55, 0.61, 0.66, 0.72, 0.77, 0.83, 0.88, 0.94, 1.00),
]


@pytest.mark.parametrize("count", [1, 4, 24])
def test_the_formulas(count: int) -> None:
    places = torch.arange(1, count + 1, dtype=torch.float64)
    assert torch.allclose(schedule("linear", count), places / count)
    assert torch.allclose(schedule("cosine", count), 0.5 - 0.5 * torch.cos(math.pi * places / count))
    assert schedule("none", count).tolist() == [0.0] * count
    assert schedule("linear", count)[-1] == schedule("cosine", count)[-1] == 1.0


def test_the_numbers_of_the_papers_files() -> None:
    assert schedule("paper_linear_gender", 18).tolist() == PAPER_LINEAR_GENDER
    ids = schedule("paper_cosine_ids", 24)
    assert ids[0] == 0.0 and ids[-2] == ids[-1] == 1.0 and ids[-3] < 1.0
    assert schedule("paper_linear_ids", 24)[:4].tolist() == [0.04, 0.08, 0.12, 0.17]
    for name in (name for name in PRESETS if name.startswith("paper")):
        count = len(PRESETS[name])
        apart = schedule(name, count) - schedule(name.split("_")[1], count)
        assert 0 < apart.abs().max() < 0.009, name


def test_learned_is_the_papers_vector_of_that_length() -> None:
    assert {len(values): task for task, values in LEARNED.items()} == {18: "gender", 24: "ids", 16: "cars"}
    assert schedule("learned", 24).tolist() == schedule("learned_ids", 24).tolist()
    assert schedule("learned", 18)[:3].tolist() == [0.492, 0.728, 0.058]
    assert schedule("learned", 16)[-3:].tolist() == [0.0, 0.268, 1.0]
    with pytest.raises(UserError, match=r"generator of 12 latents.*learn-alphas"):
        schedule("learned", 12)


@pytest.mark.parametrize("suffix", ["json", "txt", "csv", "npy"])
def test_every_kind_of_file(suffix: str, tmp_path: Path) -> None:
    path, values = tmp_path / f"a.{suffix}", [0.0, 0.25, 1.0]
    match suffix:
        case "json":
            path.write_text(json.dumps(values))
        case "npy":
            np.save(path, np.array(values))
        case _:
            path.write_text("0\n0.25\n\n1.0\n")
    assert schedule(path, 3).tolist() == schedule(str(path), 3).tolist() == values


def test_what_learn_alphas_writes_and_its_directory(tmp_path: Path) -> None:
    (tmp_path / "alphas.json").write_text(json.dumps({"alphas": [0.5, 0.25], "adversarial": 0.9}))
    assert schedule(tmp_path, 2).tolist() == schedule(tmp_path / "alphas.json", 2).tolist() == [0.5, 0.25]


def test_no_pickle_is_read(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="cannot be read"):
        schedule(tmp_path / "a.npy", 1)


@pytest.mark.parametrize(
    ("alphas", "message"),
    [
        ("cosin", "did you mean 'cosine'"),
        ("missing.json", "there is no such file"),
        ([0.5], "has 1 values, but the generator has 2 latents"),
        ([0.5, 1.5], "has 1.5 for latent 1"),
        ([-0.1, 0.5], "has -0.1 for latent 0"),
        ([math.nan, 0.5], "has nan for latent 0"),
        (["a", 0.5], "has 'a' for latent 0"),
        (torch.tensor([0.5, math.inf]), "has inf for latent 1"),
        ("learned_ids", "has 24 values"),
        (3, "is no list of numbers"),
    ],
)
def test_mistakes(alphas: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        schedule(alphas, 2)


@pytest.mark.parametrize("text", ["{", "3", '{"other": [1]}', "[[0.5], 0.1]"])
def test_a_file_of_something_else(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(UserError, match=r"a\.json"):
        schedule(tmp_path / "a.json", 2)
