"""Every experiment composes with its command and wins over the command's own values; those on embedded data run."""

import json
from importlib import import_module
from pathlib import Path

import pandas as pd
import pytest

from robustcli.cli.launch import launch
from robustcli.config import checks, schemas
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose

COMMANDS = [name.replace("_", "-") for name in schemas.SCHEMAS]
EXPERIMENTS = [
    (command, name) for command in COMMANDS for name in config_groups.groups_of(command).get("experiment", [])
]
# What only the user has, for those that need it. The others run, cut down by the words here.
FACES = ["dataset.root=images"]
NEEDS = {
    **{
        f"purify/{name}": [*FACES, "purifier.generator=a.pt"]
        for name in (
            *("celeba64_identities", "celebahq_gender", "stanford_cars4"),
            *(
                f"mlvgm/{task}/{rule}_{step}"
                for task in ("gender", "ids", "cars")
                for rule in ("linear", "cosine", "learned")
                for step in ("none", "noise", "blur")
            ),
        )
    },
    **{
        f"train_classifier/{kind}_{name}": FACES
        for kind in ("standard", "trades")
        for name in ("celeba64_identities", "celebahq_gender", "stanford_cars4")
    },
    "train_classifier/apt_unverified": ["checkpoint=robust.safetensors"],
    "train_mat/mat_clip_paper_unverified": [],
    "train_mat/mat_plus_flickr30k": [],
    "train_mat/mat_plus_coco": [],
    "evaluate/zero_shot_robustvlm": [],
    "evaluate/zero_shot_tecoa": [],
}
SHORT = ["trainer.max_steps=2", "trainer.batch_size=8", "evaluation.limit=8", "device=cpu"]
SCENES = ["dataset.train=32", "dataset.val=16", "dataset.test=16"]
RUNS = {
    "train_mat/tiny_clean": SCENES,
    "train_mat/demo": [*SCENES, "attacks.sga.image.steps=1", "~attacks.retrieval_autoattack"],
    "train_mat/sweep": [*SCENES, "attacks=quick"],
    "train_mat/mat_plus_scenes": [*SCENES, "attacks=quick"],
    "train_classifier/tiny_digits": [],
    "train_classifier/tiny_scene_classes": SCENES,
    "train_generator/nvae_digits": [],
    "train_generator/nvae_scene_classes": SCENES,
    "train_generator/avae_digits": [],
    "train_generator/ndvae_digits": [],
    "train_generator/ddpm_digits": [],
    "train_generator/ddpm_scene_classes": SCENES,
}


def test_every_experiment_is_either_run_or_lacks_a_file() -> None:
    assert sorted(name for _, name in EXPERIMENTS) == sorted([*NEEDS, *RUNS])


@pytest.mark.parametrize(("command", "name"), EXPERIMENTS)
def test_it_composes_with_its_command_and_says_what_it_is(command: str, name: str) -> None:
    checks.check(compose(command, [f"experiment={name}", *NEEDS.get(name, [])]))
    assert config_groups.summary(config_groups.conf_directory() / "experiment" / f"{name}.yaml")


@pytest.mark.parametrize("name", RUNS)
def test_it_runs(name: str, tmp_path: Path) -> None:
    if "ddpm" in name:
        pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): robustcli[diffusion]")
    command = next(command for command, other in EXPERIMENTS if other == name)
    few = [] if command == "train-generator" else ["evaluation.resamples=5"]
    assert launch(command, [f"experiment={name}", *SHORT, *few, *RUNS[name], f"hydra.run.dir={tmp_path / 'run'}"]) == 0
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["train/steps"] == 2
    assert f"- experiment={name}" in (tmp_path / "run" / "overrides.yaml").read_text()


@pytest.mark.parametrize("name", ["zero_shot_robustvlm", "zero_shot_tecoa"])
def test_a_zero_shot_protocol_takes_its_data_sets_or_those_that_are_typed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = compose("evaluate", [f"experiment=evaluate/{name}"], with_hydra=True)
    assert set(composed.hydra.sweeper.params.dataset.split(",")) <= set(config_groups.groups()["dataset"])
    (tmp_path / "my" / "dataset").mkdir(parents=True)
    for seed in (1, 2):
        file = tmp_path / "my" / "dataset" / f"digits{seed}.yaml"
        file.write_text(f"# Digits, parted otherwise.\n_target_: robustcli.data.Digits\nseed: {seed}\n")
    steps = "attacks.apgd_ensemble.steps=2" if name == "zero_shot_robustvlm" else "attacks.pgd.restarts=1"
    few = [steps, "evaluation.limit=8", "evaluation.resamples=5", "diagnostics=off", "device=cpu"]
    # Those of the field come with an extra, and no dual encoder is here that would read them.
    monkeypatch.setattr(import_module("robustcli.data.class_texts"), "_lists", lambda *_: {"digits": ["a {c}"]})
    argv = ["--config-dir", str(tmp_path / "my"), f"experiment={name}", "model=digits", "--multirun", *few]
    assert launch("evaluate", [*argv, "dataset=digits1,digits2", f"hydra.sweep.dir={tmp_path / 'sweep'}"]) == 0
    jobs = [json.loads((tmp_path / "sweep" / str(job) / "metrics.json").read_text()) for job in (0, 1)]
    means = pd.read_csv(tmp_path / "sweep" / "datasets.csv").iloc[0]
    recalls = [key for key in jobs[0] if key.endswith("recall_at_1") and key.startswith("model")]
    assert len(recalls) == (3 if name == "zero_shot_robustvlm" else 2), "clean, and each eps"
    assert all(means[key] == pytest.approx((jobs[0][key] + jobs[1][key]) / 2) for key in recalls)


@pytest.mark.parametrize("command", COMMANDS)
def test_an_experiment_changes_the_command_s_own_values(command: str, tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    # What every command's own file sets is the name of its job; seed and checkpoint stand in a file that it lists.
    mine = "# @package _global_\n# Mine.\nseed: 5\ncheckpoint: mine.pt\nhydra: {job: {name: mine}}\n"
    (tmp_path / "experiment" / "mine.yaml").write_text(mine)
    argv = ["--config-dir", str(tmp_path)]
    composed = compose(command, ["experiment=mine"], argv, with_hydra=True)
    assert (composed.seed, composed.checkpoint, composed.hydra.job.name) == (5, "mine.pt", "mine")
    assert "mine" in config_groups.groups_of(command, argv)["experiment"]


def test_the_name_alone_is_written_out_before_hydra_reads_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert launch("train-classifier", ["experiment=tiny_digits", "--cfg", "hydra"]) == 0
    assert "- experiment=train_classifier/tiny_digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("command", "word", "sentence"),
    [
        (
            "train-mat",
            "experiment=tiny_claen",
            "did you mean 'train_mat/tiny_clean'? (choices: train_mat/demo, train_mat",
        ),
        ("evaluate", "experiment=tiny_clean", "write `robustcli train-mat experiment=train_mat/tiny_clean`"),
        ("purify", "experiment=train_mat/sweep", "is one of train-mat, not of purify (choices: purify/celeba64_"),
    ],
)
def test_the_wrong_one_gets_the_right_spelling(
    command: str, word: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert launch(command, [word]) == 2
    said = capsys.readouterr().err
    assert sentence in said and said.startswith("error: experiment") and said.count("\n") == 1, said
