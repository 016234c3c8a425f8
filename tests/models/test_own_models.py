"""Models that are not of this package, as CONTRIBUTING.md says to add one: its own example is run here."""

import json
import os
import re
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import nn

from robustcli.models import Classifier, DualEncoder, load, load_dual, restore, save_weights, tiny
from robustcli.models.assembly import seeded_constructors
from robustcli.models.registry import MODELS, Row, import_factory
from robustcli.utils.errors import UserError

from .conftest import SIZES, WORDS

ROOT = Path(__file__).parents[2]
CLASSES = tuple("0123456789")
TARGET = "my_models.patches"


def example(language: str) -> str:
    """The block of code of the recipe."""
    recipe = (ROOT / "CONTRIBUTING.md").read_text().partition("## Add a model")[2].partition("\n## ")[0]
    (found,) = re.findall(rf"```{language}\n(.*?)```", recipe, flags=re.DOTALL)
    return textwrap.dedent(found)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the module and the YAML of the recipe, importable."""
    (tmp_path / "my_models.py").write_text(example("python"))
    (tmp_path / "my_conf" / "model").mkdir(parents=True)
    yaml = example("yaml").replace("robustcli.models.patches.patches", TARGET)
    (tmp_path / "my_conf" / "model" / "patches.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_models", None)


def robustcli(own: Path, command: str, *overrides: str) -> str:
    """Output of the command, run as a user runs it, from another folder."""
    search = os.pathsep.join([str(own), str(ROOT)])
    ended = subprocess.run(
        [sys.executable, "-m", "robustcli", command, "--config-dir", "my_conf", "model=patches", *overrides],
        cwd=own,
        env={**os.environ, "PYTHONPATH": search, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_recipe_trains_judges_and_restores(own: Path) -> None:
    few = ["dataset=digits", "threat=image", "attacks=quick", "evaluation.limit=20", "evaluation.resamples=20"]
    robustcli(own, "train-classifier", *few, "trainer.max_steps=2", "seed=3", "hydra.run.dir=trained")
    checkpoint = own / "trained" / "checkpoints" / "last.safetensors"
    robustcli(own, "evaluate", *few, f"checkpoint={checkpoint}", "hydra.run.dir=judged")
    figures = [json.loads((own / run / "metrics.json").read_text()) for run in ("trained", "judged")]
    key = "clean/image_to_class/recall_at_1"
    assert 0 < figures[0][f"after/{key}"] == figures[1][f"model/{key}"]
    model = restore(checkpoint, factory=import_factory(TARGET))
    assert model.description == {"factory": TARGET, "classes": list(CLASSES), "channels": 1, "width": 8}
    manifest = json.loads((own / "trained" / "manifest.json").read_text())
    assert model.fingerprint() == manifest["weights"]["after"]


@pytest.fixture
def saved(own: Path) -> tuple[Classifier, Path]:
    """The recipe's model and its file."""
    model = load({"_target_": TARGET, "width": 4, "checkpoint": None}, classes=CLASSES, seed=3)
    assert isinstance(model, Classifier)
    save_weights(model, own / "own.safetensors")
    return model, own / "own.safetensors"


def test_a_file_gives_the_model_to_whom_gives_the_factory(saved: tuple[Classifier, Path]) -> None:
    (model, path), images = saved, torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    patches = import_factory(TARGET)
    by_config = load({"_target_": TARGET, "classes": None}, checkpoint=path)
    for again in (restore(path, factory=patches), by_config):
        assert isinstance(again, Classifier) and again.classes == CLASSES
        assert again.description == model.description and torch.equal(again(images), model(images))
    with pytest.raises(UserError, match=r"model\.width is 5, but the checkpoint .* has 4"):
        load({"_target_": TARGET, "width": 5}, checkpoint=path)
    with pytest.raises(UserError, match=r"saved from my_models\.patches, not from tiny"):
        restore(path, factory=tiny)


def test_no_code_is_imported_because_a_file_names_it(saved: tuple[Classifier, Path]) -> None:
    del sys.modules["my_models"]
    for read in (restore, load):
        with pytest.raises(UserError, match=r"made by my_models\.patches, .* restore\(path, factory=patches\)"):
            read(saved[1])
    assert "my_models" not in sys.modules


def test_one_row_makes_it_a_model_by_name(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODELS, "patches", Row(TARGET, "classifier"))  # type: ignore[arg-type]
    model = load("patches", classes=CLASSES)
    assert model.description == {"factory": "patches", "classes": list(CLASSES), "channels": 1, "width": 16}
    save_weights(model, own / "own.safetensors")
    assert restore(own / "own.safetensors").fingerprint() == load(own / "own.safetensors").fingerprint()
    with pytest.raises(UserError, match="the model patches is a classifier"):
        load_dual("patches")
    with pytest.raises(UserError, match="did you mean 'patches'"):
        load("patche")


def test_seeds_name_the_weights_of_a_factory_that_knows_no_seed(own: Path) -> None:
    config = {"_target_": TARGET, "classes": 3 * ["a"]}
    first, same, other = (load(config, seed=seed).fingerprint() for seed in (1, 1, 2))
    assert first == same == load({**config, "seed": 1}, seed=2).fingerprint() != other


def test_a_plain_state_dict_fits_too(saved: tuple[Classifier, Path]) -> None:
    model, path = saved
    torch.save(model.network.state_dict(), path.with_suffix(".pt"))
    again = load({"_target_": TARGET, "width": 4}, checkpoint=path.with_suffix(".pt"), classes=CLASSES)
    assert again.fingerprint() == model.fingerprint() and again.description == model.description


def wordy(vocabulary: Sequence[str], *, width: int = 16, activation: type[nn.Module] = nn.ReLU) -> DualEncoder:
    """A dual encoder with words of its own, and a default that no checkpoint can hold."""
    assert issubclass(activation, nn.Module)
    return tiny(vocabulary, **{**SIZES, "embed_dim": width})


def test_a_dual_encoder_with_words_of_the_data_set(path: Path) -> None:
    config = {"_target_": f"{__name__}.wordy", "width": 8, "trainable": "text"}
    model = load_dual(config, vocabulary=lambda: WORDS)
    assert model.description == {"factory": f"{__name__}.wordy", "vocabulary": list(WORDS), "width": 8}
    assert not any(weight.requires_grad for weight in model.network.visual.parameters())
    save_weights(model, path)
    again = restore(path, factory=wordy)
    assert again.fingerprint() == model.fingerprint() and again.description == model.description
    assert load_dual(config, path, vocabulary=("other",)).description == model.description


def reader(checkpoint: str | None = None, width: int = 3) -> Classifier:
    """A factory that reads its file itself, and does not describe what it makes."""
    with seeded_constructors(0):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    return Classifier(network, classes=width, mean=[0.5], std=[0.5])


def module(width: int = 3) -> nn.Module:
    """No model."""
    return nn.Linear(width, width)


def seeded(width: int = 3, seed: int = 7) -> Classifier:
    """A factory that draws from its own seed."""
    with seeded_constructors(seed):
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, width))
    return Classifier(network, classes=width, mean=[0.5], std=[0.5])


def test_a_seed_names_weights_and_is_no_part_of_what_rebuilds_the_model(path: Path) -> None:
    config = {"_target_": f"{__name__}.seeded", "width": 4}
    model = load(config, seed=2)
    assert model.fingerprint() == seeded(4, seed=2).fingerprint() == load({**config, "seed": 2}).fingerprint()
    assert load(config).fingerprint() == seeded(4).fingerprint()
    save_weights(model, path)
    again = load({**config, "seed": 5}, path)
    assert again.fingerprint() == model.fingerprint()
    assert again.description == model.description == {"factory": f"{__name__}.seeded", "width": 4}


def test_a_factory_that_takes_the_checkpoint_is_described_by_its_settings() -> None:
    model = load({"_target_": f"{__name__}.reader", "width": 5, "checkpoint": None})
    assert model.description == {"factory": f"{__name__}.reader", "width": 5}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"_target_": f"{__name__}.module"},
            r"module makes a bare network, whose classes nobody names: set model\.classes",
        ),
        ({"_target_": f"{__name__}.wordy"}, r"model\.vocabulary is missing, which .*wordy needs"),
        (
            {"_target_": f"{__name__}.seeded", "width": "x"},
            r"seeded cannot be made of its settings \(TypeError",
        ),
        ({"_target_": f"{__name__}.reader", "wdith": 3}, r"model\.wdith is not an option .* did you mean 'width'"),
        ({"_target_": f"{__name__}.absent"}, r"cannot be imported .* stands in PYTHONPATH"),
        ({"_target_": f"{__name__}.wordy", "vocabulary": WORDS, "activation": nn.GELU}, "a checkpoint cannot hold"),
    ],
)
def test_mistakes(config: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(config)
