"""`train-mat` on a set of classes: their texts are the captions, and the model is judged by them."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from robustcli.cli.launch import launch
from robustcli.data import SceneClasses
from robustcli.models import DualEncoder, ZeroShot, load_dual
from robustcli.models import restore as restored

COLOURS = [
    "dataset=scene_classes",
    "dataset.attribute=colour",
    "dataset.train=200",
    "dataset.val=40",
    "dataset.test=40",
    "model.checkpoint=shipped",
    "trainer.batch_size=16",
    "trainer.max_steps=3",
    "trainer.eval_every=2",
    "evaluation.resamples=20",
    "evaluation.limit=24",
    "attacks=none",
    "diagnostics=off",
]


@pytest.mark.parametrize(
    ("settings", "trained"),
    [
        (["defense=mat"], ("visual", "text")),
        (["defense=mat_trades"], ("visual", "text")),
        (["defense=mmcoa"], ("visual", "text")),
        (["defense=leaf", "attack=words", "threat=text"], ("text",)),
        (["defense=clean"], ("visual", "text")),
    ],
)
def test_objectives_on_pairs_train_on_classes(settings: list[str], trained: tuple[str, ...], tmp_path: Path) -> None:
    assert launch("train-mat", [*COLOURS, *settings, f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    run = tmp_path / "run"
    assert json.loads((run / "metrics.json").read_text())["before/clean/image_to_class/recall_at_1"] == 1.0
    model = restored(run / "checkpoints" / "last.safetensors")
    assert isinstance(model, DualEncoder)
    # What was judged is what was saved: the same answers by the class texts of the trained text tower.
    data = SceneClasses("colour", split="test", train=200, val=40, test=40)
    records = pd.read_parquet(run / "records.parquet")
    after = records[(records["model"] == "after") & (records["attack"] == "clean")]
    answers = ZeroShot(model, data.classes, templates=data.templates)(data.images(torch.arange(24))).argmax(1)
    assert (answers == data.labels[:24]).tolist() == after["clean_correct"].tolist()
    before = load_dual("tiny").network.state_dict()
    changed = {
        name.split(".")[0] for name, value in model.network.state_dict().items() if not torch.equal(value, before[name])
    }
    assert ("visual" in changed) == ("visual" in trained) and bool(changed - {"visual", "logit_scale"}) == (
        "text" in trained
    )
    assert json.loads((run / "manifest.json").read_text())["class_texts"]["templates"] == list(data.templates)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["dataset.captions_per_image=1"], "the data set has classes"),
        (["templates=nowhere"], "templates is 'nowhere'"),
        (["templates=[a,b]"], "without {}"),
        (["class_names=[a,b]"], "2 names"),
        (["defense=leaf", "attack=words", "threat=text", "attacks=standard"], "choose another suite, attacks=none"),
    ],
)
def test_mistakes_are_told_before_any_work(
    given: list[str], said: str, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert launch("train-mat", [*COLOURS, *given, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert said in " ".join(capfd.readouterr().err.split())


def test_texts_of_classes_are_none_of_captions(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert launch("train-mat", ["templates=simple", f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "captions and no classes" in " ".join(capfd.readouterr().err.split())
