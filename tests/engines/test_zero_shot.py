"""A dual encoder on a data set of classes, from the command line: every command that judges classifiers judges it."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from robustcli.cli.launch import launch
from robustcli.data import SceneClasses
from robustcli.data.scenes.world import COLOURS
from robustcli.models import ZeroShot, load_dual

SMALL = ["dataset.train=64", "dataset.val=16", "dataset.test=32"]
TINY = ["dataset=scene_classes", "model=tiny", *SMALL]
FEW = ["evaluation.eps_curve=[]", "evaluation.resamples=20", "diagnostics=off", "threat=image"]
APGD = ["attacks=none", "attack=apgd", "attack.steps=5"]
FIGURE = "image_to_class/recall_at_1"
CLEAN = f"model/clean/{FIGURE}"


def run(place: Path, command: str, *words: str) -> dict[str, float]:
    assert launch(command, [*words, f"hydra.run.dir={place}"]) == 0
    figures: dict[str, float] = json.loads((place / "metrics.json").read_text())
    return figures


def manifest(place: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((place / "manifest.json").read_text())
    return content


def refused(capsys: pytest.CaptureFixture[str], command: str, *words: str) -> str:
    capsys.readouterr()
    with TemporaryDirectory() as place:
        assert launch(command, [*words, f"hydra.run.dir={place}/run"]) == 2
    return " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("attribute", "least"), [("colour", 0.95), ("shape", 0.5), ("size", 0.65), ("place", 0.2)])
def test_the_shipped_model_tells_scenes_by_the_texts_of_their_classes(attribute: str, least: float) -> None:
    """What it learnt of each attribute: nothing of the places."""
    data = SceneClasses(attribute, split="test", train=64, val=16, test=200)
    model = ZeroShot(load_dual("tiny"), data.classes, templates=data.templates)
    with torch.no_grad():
        found = model(data.images(torch.arange(200))).argmax(1)
    assert least < float((found == data.labels).float().mean())


def test_it_is_judged_under_attack_and_the_run_tells_the_texts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(tmp_path / "run", "evaluate", *TINY, "dataset.attribute=colour", *FEW, *APGD, "evaluation.limit=16")
    assert found[CLEAN] == 1.0 and found[f"model/apgd/{FIGURE}"] < 0.5
    texts = manifest(tmp_path / "run")["class_texts"]
    assert texts == {"names": list(COLOURS), "templates": ["something {}"], "origin": "of scene_classes"}
    told = "Zero-shot: 6 classes in 1 template (of scene_classes), such as 'something red'."
    assert told in " ".join(capsys.readouterr().out.split()) and told in (tmp_path / "run" / "report.md").read_text()


def test_templates_and_names_of_the_command_line_are_those_of_the_run(tmp_path: Path) -> None:
    words = ["dataset.attribute=colour", "attacks=none", "diagnostics=off"]
    texts = ["templates=['a {} shape', 'something {}']", "class_names=[crimson, jade, navy, golden, violet, coral]"]
    found = run(tmp_path / "run", "evaluate", *TINY, *words, *texts)
    assert found[CLEAN] > 0.8
    assert manifest(tmp_path / "run")["class_texts"] == {
        "names": ["crimson", "jade", "navy", "golden", "violet", "coral"],
        "templates": ["a {} shape", "something {}"],
        "origin": "given",
    }
    swapped = ["class_names=[green, red, yellow, blue, pink, purple]"]
    assert run(tmp_path / "wrong", "evaluate", *TINY, *words, *swapped)[CLEAN] < 0.1


def test_purifiers_and_surrogates_stand_around_it(tmp_path: Path) -> None:
    colour = [*TINY, "dataset.attribute=colour", "evaluation.limit=4"]
    noise = ["purifier=noise", "purifier.draws=1", "evaluation.fresh=2", "~baselines.noise", "~baselines.blur"]
    noise += ["~baselines.jpeg", "attacks=none", "+attack@attacks.apgd=apgd", "attacks.apgd.steps=2"]
    noise += ["evaluation.eps_curve=[1]", "evaluation.eot=2", "diagnostics=off"]
    run(tmp_path / "purified", "purify", *colour, *noise)
    records = pd.read_parquet(tmp_path / "purified" / "records.parquet")
    assert {"static", "bpda", "adaptive"} <= set(records["access"])
    shape = [*TINY, "dataset.attribute=shape", "evaluation.limit=8", *FEW, *APGD]
    moved = run(tmp_path / "moved", "evaluate", *shape, "evaluation.surrogate={name: scene_classes}")
    assert f"model/apgd/{FIGURE}" in moved


def test_it_trains_as_a_classifier_and_the_file_serves_retrieval(tmp_path: Path) -> None:
    words = [*TINY, "dataset.attribute=shape", "model.checkpoint=shipped", *FEW, "attacks=none", "objective=pgd_at"]
    steps = ["trainer.max_steps=2", "trainer.batch_size=16", "trainer.lr=1e-3", "attack.steps=1", "evaluation.limit=16"]
    figures = run(tmp_path / "run", "train-classifier", *words, *steps, "attack.alpha=1")
    saved = tmp_path / "run" / "checkpoints" / "last.safetensors"
    before, after = load_dual("tiny").network.state_dict(), load_file(saved)
    changed = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith("visual.") for name in changed)
    again = run(
        tmp_path / "again",
        "evaluate",
        *TINY,
        "dataset.attribute=shape",
        "attacks=none",
        f"checkpoint={saved}",
        "evaluation.limit=16",
        "diagnostics=off",
    )
    assert again[CLEAN] == figures[f"after/clean/{FIGURE}"]
    assert load_dual(saved).encode_image(torch.rand(1, 3, 32, 32)).shape == (1, 128)


def test_a_prompt_is_learnt_against_attacks_and_its_file_says_the_classes(tmp_path: Path) -> None:
    words = [*TINY, "dataset.attribute=shape", *FEW, *APGD, "evaluation.limit=16"]
    preset = ["experiment=apt_unverified", "model=tiny", "model.checkpoint=shipped", "prompt.length=4"]
    steps = ["attacks=none", "trainer.max_steps=2", "trainer.batch_size=16", "trainer.lr=0.1"]
    common = [*TINY[:1], *SMALL, "dataset.attribute=shape", "evaluation.limit=16", "diagnostics=off"]
    figures = run(tmp_path / "run", "train-classifier", *common, *preset, *steps)
    folder = tmp_path / "run" / "checkpoints"
    before = load_dual("tiny").network.state_dict()
    after = load_file(folder / "last.safetensors")
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    again = run(tmp_path / "again", "evaluate", *words, f"templates={folder / 'prompt.safetensors'}")
    assert again[CLEAN] == figures[f"after/clean/{FIGURE}"]
    plain = run(tmp_path / "plain", "evaluate", *words)
    assert again[CLEAN] != plain[CLEAN], "the words of the set are others"


def test_keys_that_nothing_would_read_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    unread = "nothing would read it, because"
    digits = ["dataset=digits", "model=digits", "attacks=none", "diagnostics=off"]
    assert f"{unread} no model here is a dual encoder" in refused(capsys, "evaluate", *digits, "templates=simple")
    scenes = ["dataset=scenes", "model=tiny", *SMALL, "attacks=none", "diagnostics=off"]
    assert f"{unread} the data set scenes has captions" in refused(capsys, "evaluate", *scenes, "templates=simple")
    said = refused(capsys, "train-classifier", *TINY, "model.checkpoint=shipped", "model.trainable=text")
    assert f"{unread} of a dual encoder that classifies by texts the image tower alone trains" in said
    assert "without {}" in refused(capsys, "evaluate", *TINY, "templates=[a photo]")
    said = refused(capsys, "evaluate", *TINY, "class_names=[a1, a2, a3, a4, a5, a6]")
    assert "the classes 'a1' and 'a2' as the same tokens" in said
    said = refused(capsys, "train-classifier", *TINY, "prompt.length=4", "templates=simple")
    assert f"{unread} a learnt prompt stands in its place" in said
    assert f"{unread} prompt.length is null" in refused(capsys, "train-classifier", *TINY, "prompt.per_class=true")
    said = refused(capsys, "train-classifier", "dataset=digits", "model=digits", "prompt.length=4")
    assert "which a dual encoder alone reads" in said
    text = ["dataset=scenes", "model=tiny", *SMALL, "threat=text", "threat.at=model"]
    assert f"threat.at=model: {unread} threat.eps is 0" in refused(capsys, "evaluate", *text)


@pytest.mark.parametrize("data", ["scene_classes", "scenes"])
def test_where_the_perturbation_stands_changes_the_robust_figure_alone(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [f"dataset={data}", "model=tiny", *SMALL, "dataset.size=64", "evaluation.limit=16", *FEW]
    words += ["attack=pgd", "attack.steps=3", "threat.eps=2/255"]
    found, said = {}, {}
    for at in ("data", "model"):
        found[at] = run(tmp_path / at, "attack", *words, f"threat.at={at}")
        said[at] = " ".join(capsys.readouterr().out.split())
    clean = [name for name in found["data"] if "/clean/" in name]
    assert clean and all(found["data"][name] == found["model"][name] for name in clean)
    assert any(found["data"][name] != found["model"][name] for name in found["data"] if "/pgd/" in name)
    assert "in the pixels of the data set, before the resize (threat.at=data)" in said["data"]
    assert "at the input of the model, after the resize (threat.at=model)" in said["model"]
    for at, size in (("data", 64), ("model", 32)):
        (file,) = (tmp_path / at / "adversarial").glob("*.safetensors")
        assert load_file(file)["images"].shape[-2:] == (size, size)


def test_a_perturbation_at_the_model_is_refused_where_it_has_no_one_size(capsys: pytest.CaptureFixture[str]) -> None:
    large = [*TINY, "dataset.size=64", *FEW, *APGD, "threat.at=model"]
    assert "a purifier stands in front" in refused(capsys, "evaluate", *large, "purifier=noise")
    words = [word for word in large if word != "model=tiny"]
    assert "images of 32 and 64 pixels" in refused(capsys, "evaluate", *words, "models={a: tiny, b: scene_classes}")
    said = refused(capsys, "train-classifier", "dataset=digits", "model=digits", "threat.at=model")
    assert "a training moves pixels of the data set" in said


OWN = """
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from robustcli.models import DualEncoder


class Block(nn.Module):
    def __init__(self, inside, outside):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inside, outside, 3, stride=2, padding=1), nn.BatchNorm2d(outside)
        self.conv2, self.bn2 = nn.Conv2d(outside, outside, 3, padding=1), nn.BatchNorm2d(outside)
        self.conv3 = nn.Conv2d(inside, outside, 1, stride=2)

    def forward(self, x):
        return (self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())) + self.conv3(x)).relu()


class ImageTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.res_block1, self.res_block2, self.res_block3 = Block(1, 16), Block(16, 4), Block(4, 1)
        self.wi, self.ln = nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, x):
        return self.ln(self.wi(self.res_block3(self.res_block2(self.res_block1(x))).flatten(1)))


class TextTower(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.dense1, self.dense2 = nn.Embedding(10, 16), nn.Linear(16, 64), nn.Linear(64, 16)
        self.wt, self.ln = nn.Linear(16, 8), nn.LayerNorm(8)

    def forward(self, tokens):
        return self.ln(self.wt(self.dense2(self.dense1(self.emb(tokens[:, 0])).relu()).relu()))


class TwoTowers(nn.Module):
    def __init__(self):
        super().__init__()
        self.visual, self.text = ImageTower(), TextTower()
        self.logit_scale = nn.Parameter(torch.tensor(10.0).log())

    def encode_image(self, images):
        return self.visual(images)

    def encode_text(self, tokens):
        return self.text(tokens)


def tokenizer(texts: Sequence[str]) -> Tensor:
    return torch.tensor([[int(text)] for text in texts]).view(-1, 1)


def digit_clip(weights: str) -> DualEncoder:
    network = TwoTowers()
    state = torch.load(weights, map_location="cpu", weights_only=True)
    state = {name.replace("img_enc.", "visual.").replace("text_enc.", "text."): each for name, each in state.items()}
    network.load_state_dict(state, strict=False)
    return DualEncoder(network, tokenizer, image_size=28, mean=[0.0], std=[1.0])
"""
DATA = Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.mark.skipif(not DATA.is_dir(), reason=f"the real images and weights are not at {DATA}")
def test_a_two_tower_model_of_a_user_s_own_reads_real_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "digit_clip_of_a_user.py").write_text(OWN)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    weights = DATA / "weights" / "mnist_clip_owenliang" / "model.pth"
    yaml = f"_target_: digit_clip_of_a_user.digit_clip\nweights: {weights}\n"
    (tmp_path / "conf" / "model" / "digit_clip.yaml").write_text(yaml)
    monkeypatch.syspath_prepend(str(tmp_path))
    file = DATA / "classification" / "mnist" / "mnist_t10k_dev.npz"
    words = ["dataset=npz", f"dataset.file={file}", "dataset.classes=10", "dataset.holds=test", "evaluation.limit=1000"]
    found = run(
        tmp_path / "run",
        "evaluate",
        "--config-dir",
        str(tmp_path / "conf"),
        "model=digit_clip",
        *words,
        "templates='{}'",
        "attacks=none",
        "diagnostics=off",
    )
    assert found[CLEAN] == pytest.approx(0.98, abs=0.01)
