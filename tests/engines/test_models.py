"""`evaluate` with several architectures in one table: ``models``, and ``checkpoints`` that say what they are of."""

import json
from pathlib import Path

import pandas as pd
import pytest
import yaml

from robustcli.cli.launch import launch
from robustcli.cli.rerun import rerun
from robustcli.models import load_classifier, save_weights

ROOT = Path(__file__).parents[2]
FEW = ["evaluation.limit=32", "evaluation.eps_curve=[]", "evaluation.resamples=10", "diagnostics=off"]
DIGITS = ["dataset=digits", "threat=image", "eps=32/255", "attacks=none", "attack=pgd", *FEW]
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, scale: float = 0.1) -> None:
        super().__init__()
        weight = torch.randn(10, 64, generator=torch.Generator().manual_seed(0))
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.layers[1].weight.data, self.layers[1].bias.data = scale * weight, torch.zeros(10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)
"""
MINE = "mine: {name: my_module_of_models.Net, mean: [0.0], std: [1.0], scale: 0.2}"


def figures(place: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((place / "metrics.json").read_text())
    return found


@pytest.fixture
def own_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_module_of_models.py").write_text(NET)
    monkeypatch.syspath_prepend(str(tmp_path))


def saved(place: Path, model: dict[str, object]) -> Path:
    save_weights(load_classifier(model, classes=[str(digit) for digit in range(10)]), place)
    return place


@pytest.mark.usefixtures("own_network")
def test_models_stand_in_one_table_under_the_same_attacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = f"models={{small: digits, drawn: {{name: lenet_mnist, pretrained: random}}, {MINE}}}"
    run, alone = tmp_path / "run", tmp_path / "alone"
    assert launch("evaluate", [*DIGITS, models, "transfer=true", f"hydra.run.dir={run}"]) == 0
    assert launch("evaluate", [*DIGITS, "model=digits", f"hydra.run.dir={alone}"]) == 0
    records = pd.read_parquet(run / "records.parquet")
    assert list(records["model"].unique()) == ["small", "drawn", "mine"]
    images = records.groupby("model")["image_id"].agg(lambda ids: tuple(sorted(set(ids))))
    assert images.nunique() == 1 and set(records["attack"]) == {"clean", "pgd"}
    name = "pgd/image_to_class/recall_at_1"
    assert figures(run)[f"small/{name}"] == figures(alone)[f"model/{name}"]
    nodes = yaml.safe_load((run / "config.yaml").read_text())["models"]
    assert nodes["small"]["_target_"] == "robustcli.models.small_cnn" and nodes["small"]["checkpoint"] == "shipped"
    assert nodes["mine"] == {"_target_": "my_module_of_models.Net", "mean": [0.0], "std": [1.0], "scale": 0.2}
    weights = json.loads((run / "manifest.json").read_text())["weights"]
    assert set(weights) == {"small", "drawn", "mine"} and len(set(weights.values())) == 3
    assert rerun(run, tmp_path / "again", trust=True) == 0
    assert "identical" in capsys.readouterr().out


def test_files_of_other_architectures_stand_in_one_table(tmp_path: Path) -> None:
    one = saved(tmp_path / "one.safetensors", {"name": "small_cnn", "channels": 1, "widths": [8]})
    other = saved(tmp_path / "other.safetensors", {"name": "lenet_mnist"})
    narrow = f"{{name: digits, widths: [8], shipped: null, checkpoint: {one}}}"
    files = f"checkpoints={{a: {one}, b: {other}}}"
    named = f"models={{a: {narrow}, b: {{name: lenet_mnist, checkpoint: {other}}}}}"
    for number, words in enumerate((files, named)):
        assert launch("evaluate", [*DIGITS, words, f"hydra.run.dir={tmp_path / str(number)}"]) == 0
    both = [figures(tmp_path / str(number)) for number in (0, 1)]
    assert both[0] == both[1] and "b/pgd/image_to_class/recall_at_1" in both[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["models={small: digitz}"], "models.small is 'digitz': did you mean 'digits'?"),
        (
            ["models={small: {name: digits, wdths: [8]}}"],
            "has no key 'models.small.wdths': did you mean 'models.small.widths'?",
        ),
        (["models={small: {name: digits, channels: 3}}"], "error: models.small.channels is 3, but the checkpoint"),
        (["models={small: {name: digits, channels: 3}}"], "with models.small.checkpoint=null"),
        (["models={small: {widths: [8]}}"], "models.small is None"),
        (["models={small: digits, big: tiny}"], "models.big: the model reads the texts of the classes"),
        (["models={small: digits, other: scene_classes}"], "models.other: the model knows the classes"),
        (["models={small: small_cnn}"], "models.small: model small_cnn has random weights"),
        (["models={small: small_cnn}"], "give those to judge with models.small.checkpoint=FILE, or with models.small."),
        (["models=digits"], "without labels"),
        (["models={}"], "without labels"),
        (["models={a b: digits}"], "the label 'a b' names a node of the config: give it letters"),
        (["models={../x: digits}"], "names a node of the config"),
        (["models={a: digits},{b: digits}"], "this short form is one set of models"),
        (["models={small: digits}", "checkpoint=a.safetensors"], "checkpoint is given beside models"),
        (["models={small: digits}", "checkpoints={a: a.safetensors}"], "checkpoints is given beside models"),
        (["models={small: digits}", "model=digits"], "model=digits: nothing would read it"),
        (["models={mine: no.such.Net}"], "models.mine"),
        (["checkpoints={a: no.safetensors}"], "checkpoints.a: "),
    ],
)
def test_models_that_cannot_stand_in_it_are_refused_before_work(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch("evaluate", [*DIGITS, *words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert said in error and "Traceback" not in error and not (tmp_path / "run").exists(), error


def test_a_killed_table_of_models_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = [*DIGITS, "models={small: digits, drawn: {name: lenet_mnist, pretrained: random}}"]

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("robustcli.report.results.Run.write_records", stop)
        assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / 'a'}"]) == 130
    assert launch("evaluate", [f"resume={tmp_path / 'a'}"]) == 0
    assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / 'b'}"]) == 0
    assert figures(tmp_path / "a") == figures(tmp_path / "b")
