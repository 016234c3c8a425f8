"""The field's robust fine-tunings from the command line: what trains, what stays, and what a killed run ends in."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from safetensors.torch import load_file

from robustcli.cli.launch import launch
from robustcli.models import load_dual

TINY = ["model=tiny", "model.checkpoint=shipped", "dataset.train=64", "dataset.val=16", "dataset.test=16"]
FEW = ["evaluation.eps_curve=[]", "evaluation.resamples=20", "evaluation.limit=16", "attacks=none", "diagnostics=off"]
STEPS = ["trainer.batch_size=16", "trainer.lr=1e-3", "trainer.save_minutes=0", "attack=pgd", "attack.steps=1"]
CLASSES = ["train-classifier", "dataset=scene_classes", "dataset.attribute=colour", *TINY, *FEW, *STEPS]
PAIRS = ["train-mat", "dataset=scenes", "threat=image", *TINY, *FEW, *STEPS, "evaluation.before=false"]
JUDGE = [*TINY[2:], "attacks=none", "diagnostics=off", "evaluation.limit=16"]


def run(place: Path, *words: str) -> dict[str, float]:
    command, *rest = words
    assert launch(command, [*rest, f"hydra.run.dir={place}"]) == 0
    figures: dict[str, float] = json.loads((place / "metrics.json").read_text())
    return figures


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    capsys.readouterr()
    with TemporaryDirectory() as place:
        assert launch(words[0], [*words[1:], f"hydra.run.dir={place}/run"]) == 2
    return " ".join(capsys.readouterr().err.split())


def saved(place: Path) -> Path:
    return place / "checkpoints" / "last.safetensors"


@pytest.mark.parametrize(
    "words",
    [[*CLASSES, "objective=tga_zsr"], [*CLASSES, "objective=adv_flyp"], [*PAIRS, "defense=pmg_aft"]],
    ids=["tga_zsr", "adv_flyp", "pmg_aft of pairs"],
)
def test_the_image_tower_alone_trains_and_the_file_serves_both_ways(words: list[str], tmp_path: Path) -> None:
    figures = run(tmp_path / "run", *words, "trainer.max_steps=2")
    before, after = load_dual("tiny").network.state_dict(), load_file(saved(tmp_path / "run"))
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("visual.") for name in changed), "texts and temperature are bit-equal"
    again = {}
    for data in ("scenes", "scene_classes"):
        model = [f"dataset={data}", "model=tiny", f"checkpoint={saved(tmp_path / 'run')}"]
        model += ["dataset.attribute=colour"] if data == "scene_classes" else []
        again[data] = run(tmp_path / data, "evaluate", *model, *JUDGE)
    trained_on = "scenes" if words[0] == "train-mat" else "scene_classes"
    figure = f"clean/image_to_{'text' if trained_on == 'scenes' else 'class'}/recall_at_1"
    assert again[trained_on][f"model/{figure}"] == figures[f"after/{figure}"]


def test_a_killed_and_resumed_training_holds_to_the_same_original(tmp_path: Path) -> None:
    """What the features are held to is the model before the training, not the one that was resumed."""
    words = [*CLASSES, "objective=fare", "trainer.max_steps=40"]
    run(tmp_path / "whole", *words)
    cut = tmp_path / "cut"
    argv = [sys.executable, "-m", "robustcli", *words, f"hydra.run.dir={cut}"]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (cut / "parts" / "state.zip").exists():
        assert process.poll() is None and time.monotonic() < deadline, "it ended before its first state"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (cut / "DONE").exists(), "it was through before it could be killed"
    assert launch("train-classifier", [f"resume={cut}"]) == 0
    assert saved(cut).read_bytes() == saved(tmp_path / "whole").read_bytes()


def test_what_a_rival_cannot_train_is_told_before_any_work(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    digits = ["train-classifier", "dataset=digits", "model=digits", "objective=fare"]
    assert "objective=fare trains the image tower of a dual encoder" in refused(capsys, *digits)
    said = refused(capsys, *CLASSES, "objective=tecoa", "attack.loss=margin")
    assert "attack.loss=margin: nothing would read it, because objective=tecoa moves the images by a loss" in said
    autoattack = [word for word in CLASSES if not word.startswith("attack")] + ["attacks=none", "attack=autoattack"]
    assert "a loss of its own, which AutoAttack does not take" in refused(capsys, *autoattack, "objective=tecoa")
    vision = {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "patch_size": None}
    text = {"context_length": 20, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
    sizes = {"model_cfg": {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(sizes))
    resnet = ["model=open_clip", f"model.architecture='local-dir:{tmp_path}'", *CLASSES[1:3], "objective=tga_zsr"]
    said = refused(capsys, "train-classifier", *resnet, *TINY[2:], *FEW, *STEPS)
    assert "the image tower ModifiedResNet has no patch tokens" in said
