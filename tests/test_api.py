"""The surface that a notebook sees: names that stay, a model judged without Hydra, a run read back."""

import inspect
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import robustcli
from robustcli import ThreatModel, UserError, evaluate, load_run
from robustcli.attacks import PGD
from robustcli.cli.launch import launch
from robustcli.data import Digits, Scenes
from robustcli.models import DualEncoder, load_classifier

# What the documentation promises: a change of it is a change of the version, and a line in CHANGELOG.md.
SURFACE = {
    "EvaluationResult": ["table", "records", "diagnostics", "threat", "notes", "robust"],
    "LoadedRun": [
        "directory",
        "command",
        "config",
        "overrides",
        "metrics",
        "manifest",
        "records",
        "table",
        "diagnostics",
        "figures",
        "checkpoints",
        "report",
        "page",
    ],
    "ThreatModel": ["norm", "eps", "words", "characters", "edits"],
    "UserError": [],
    "evaluate": [
        "model",
        "data",
        "threat",
        "attacks",
        "limit",
        "batch_size",
        "diagnostics",
        "share",
        "resamples",
        "seed",
        "progress",
    ],
    "load_run": ["directory"],
}
QUIET = {"diagnostics": "off", "resamples": 10, "progress": False}


def test_the_documented_names_are_there_and_unchanged() -> None:
    assert sorted([*SURFACE, "__version__"]) == sorted(robustcli.__all__) and set(SURFACE) <= set(dir(robustcli))
    for name, parts in SURFACE.items():
        named = getattr(robustcli, name)
        if inspect.isclass(named):
            assert all(hasattr(named, part) or part in named.__dataclass_fields__ for part in parts), name
        else:
            assert list(inspect.signature(named).parameters) == parts
    with pytest.raises(AttributeError, match="no attribute 'evaluates'"):
        _ = robustcli.evaluates  # type: ignore[attr-defined]


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, robustcli; print(sorted({'torch', 'pandas', 'hydra', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


class Net(nn.Module):
    """A network of one's own, with a dropout and a batch norm that a careless evaluation would move."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Dropout(0.5), nn.Linear(64, 3))

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images)


def images_and_labels(net: nn.Module, count: int = 12) -> tuple[Tensor, Tensor]:
    images = torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return images, net.eval()(images).argmax(1)


def test_a_network_of_ones_own_is_judged_and_left_as_it_was() -> None:
    net = Net()
    images, labels = images_and_labels(net)
    net.train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    result = evaluate(net, (images, labels), threat=ThreatModel(eps=0.2), attacks={"mine": PGD(steps=5)}, **QUIET)
    assert net.training and all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state) and all(weight.grad is None for weight in net.parameters())
    clean = result.table[result.table["attack"] == "clean"]["recall_at_1"].item()
    assert clean == 1.0 and result.robust() < 0.5
    assert len(result.records) == 2 * 12 and result.records["norm"].max() <= 0.2 * (1 + 1e-6)
    assert (
        "mine" in str(result)
        and "<table" in result._repr_html_()
        and "12 images of 3 classes" in " ".join(result.notes)
    )


def test_names_of_attacks_and_suites_are_those_of_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"
    words = ["dataset=digits", "model=digits", "evaluation.limit=16", "eps=16/255", "attacks=none", "attack=pgd"]
    words += ["evaluation.eps_curve=[]", "diagnostics=off", "evaluation.resamples=10", f"hydra.run.dir={place}"]
    assert launch("evaluate", words) == 0
    asked = {"threat": ThreatModel(eps="16/255"), "limit": 16, **QUIET}
    model, data = load_classifier("digits"), Digits(split="test")
    result = evaluate(model, data, attacks="pgd", **asked)  # type: ignore[arg-type]
    written = pd.read_parquet(place / "records.parquet")
    assert result.records["adversarial_rank"].tolist() == written["adversarial_rank"].tolist()
    capsys.readouterr()
    both = evaluate({"a": model, "b": model}, data, attacks=["pgd", "fgsm"], **{**asked, "progress": True})  # type: ignore[arg-type]
    assert list(both.table["model"].unique()) == ["a", "b"] and {"pgd", "fgsm", "worst"} <= set(both.table["attack"])
    assert "judge: 16 images x 2 models x 2 attacks" in capsys.readouterr().out
    assert set(evaluate(model, data, attacks="quick", **asked).table["attack"]) >= {"clean", "pgd"}  # type: ignore[arg-type]


def test_a_dual_encoder_is_judged_on_captions_and_the_figure_is_diagnosed(
    scenes: Scenes, small_model: DualEncoder
) -> None:
    result = evaluate(small_model, scenes, attacks="sep", limit=6, diagnostics="auto", resamples=10, progress=False)
    assert set(result.table["direction"]) == {"image_to_text", "text_to_image"}
    assert {finding.attack for finding in result.diagnostics} == {"sep"} and str(result.threat).count("word")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"data": lambda images, labels: (images * 255, labels)}, r"images reach from .* expected pixels in \[0,1\]"),
        ({"data": lambda images, labels: (images[0], labels)}, r"images are \(1, 8, 8\)"),
        (
            {"data": lambda images, labels: (images, labels + 2)},
            "labels reach from 2 to 4, but the model has 3 classes",
        ),
        ({"data": lambda images, labels: (images, labels[:3])}, r"labels are \(3,\)"),
        ({"data": lambda images, labels: images}, "two tensors"),
        ({"model": lambda images: images}, "model is a function"),
        ({"model": nn.Flatten(start_dim=0)}, r"the model gives \(64,\) for one image"),
        ({"attacks": "pdg"}, "there is no attack 'pdg': did you mean 'pgd'"),
        ({"attacks": "words"}, "words"),
        ({"diagnostics": "on"}, "choose auto, full or off"),
    ],
)
def test_a_mistake_is_one_sentence_before_any_work(change: dict[str, object], said: str) -> None:
    net = Net()
    images, labels = images_and_labels(net)
    asked: dict[str, object] = {"model": net, "attacks": {"mine": PGD(steps=1)}, **change}
    data = asked.pop("data", lambda *pair: pair)
    with pytest.raises(UserError, match=said):
        evaluate(data=data(images, labels), **asked)  # type: ignore[operator, arg-type]


def test_a_run_is_read_back_with_its_tables_and_files(tmp_path: Path) -> None:
    words = ["dataset=digits", "model=digits", "evaluation.limit=8", "attacks=none", "attack=pgd", "attack.steps=1"]
    words += [
        "diagnostics=off",
        "evaluation.resamples=10",
        "evaluation.eps_curve=[0,1]",
        f"hydra.run.dir={tmp_path / 'run'}",
    ]
    assert launch("evaluate", words) == 0
    run = load_run(str(tmp_path / "run"))
    assert (run.command, run.config["evaluation"]["limit"], run.directory) == ("evaluate", 8, tmp_path / "run")
    assert run.metrics["objective"] == json.loads((tmp_path / "run" / "metrics.json").read_text())["objective"]
    assert "attack.steps=1" in run.overrides and len(run.records) > 8 and "recall_at_1" in run.table
    assert (
        run.diagnostics.empty and not run.checkpoints and run.figures and run.page == tmp_path / "run" / "report.html"
    )
    (tmp_path / "run" / "records.parquet").unlink()
    with pytest.raises(UserError, match=r"without records\.parquet; it has .*metrics\.csv"):
        _ = load_run(tmp_path / "run").records


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (None, "does not exist"),
        ({}, "there is no run"),
        ({"manifest.json": "{}"}, "it still runs or was stopped"),
        ({"manifest.json": "{}", "FAILED": "ValueError: it broke\n\nTraceback"}, "it failed: ValueError: it broke"),
        ({"multirun.yaml": ""}, "it is a sweep, name one of its jobs"),
        ({"DONE": "", "manifest.json": "{", "metrics.json": "{}"}, "cannot be read"),
        ({"DONE": "", "manifest.json": "[]", "metrics.json": "{}"}, "cannot be read"),
    ],
)
def test_what_is_no_finished_run_is_said_to_be_none(tmp_path: Path, files: dict[str, str] | None, said: str) -> None:
    place = tmp_path / "run"
    for name, text in (files or {}).items():
        place.mkdir(exist_ok=True)
        (place / name).write_text(text)
    if files == {}:
        place.mkdir()
    with pytest.raises(UserError, match=said):
        load_run(place)
