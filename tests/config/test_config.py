"""Every file of conf/ composes, and the schemas refuse what no run could work with."""

from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from robustcli.config import groups as config_groups
from robustcli.config import schemas
from robustcli.config.errors import compose, keys
from robustcli.utils.errors import UserError

COMMANDS = ("train-mat", "train-classifier", "train-generator", "purify", "learn-alphas", "attack", "evaluate")
OWNERS = {  # of a group that train-mat has not
    "augmentation": "train-classifier",
    "objective": "train-classifier",
    "protocol": "purify",
    "purifier": "purify",
    "generator": "train-generator",
}
CHOICES = [(group, choice) for group, names in config_groups.groups().items() for choice in names]
# The files that only the user can name.
FILES = {
    "karpathy": ["dataset.annotations=a.json", "dataset.root=images"],
    "table": ["dataset.table=a.csv", "dataset.root=images"],
    "shards": ["dataset.pattern='test-{0..1}.tar'"],
    "class_folders": ["dataset.root=images"],
    **{
        f"{kind}{name}": ["dataset.root=images"]
        for name in ("celebahq_gender", "celeba64_identities", "stanford_cars4")
        for kind in ("", "classifier_", "trades_")
    },
    "npz": ["dataset.file=a.npz"],
    "purify_celeba64_identities": ["dataset.root=images", "purifier.generator=a.pt"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_without_arguments(command: str) -> None:
    composed = compose(command, [])
    schemas.check(composed)
    assert composed.seed == 0 and composed.checkpoint is None and composed.resume is None


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes_and_says_what_it_is(group: str, choice: str) -> None:
    about = config_groups.summary(config_groups.conf_directory() / group / f"{choice}.yaml")
    every = [name.replace("_", "-") for name in schemas.SCHEMAS]
    command = next((name for name in every if f"{name} only" in about), OWNERS.get(group, "train-mat"))
    judged = command in ("train-mat", "train-classifier") and group not in ("judges", "experiment")
    rest = ["judges=none"] if judged else []  # five attacks fewer to compose
    files = FILES.get(choice, []) if group in ("dataset", "experiment") else []
    composed = compose(command, [f"{group}={choice}", *rest, *files])
    schemas.check(composed)
    assert OmegaConf.to_container(composed, resolve=True)
    assert about, "its first comment line is missing"


def test_the_keys_that_a_user_will_guess_exist() -> None:
    known = set(keys(compose("train-mat", [])))
    trainer = {f"trainer.{name}" for name in ("max_steps", "batch_size", "lr", "threads", "device")}
    assert {"seed", "checkpoint", "resume", "attack.image.eps", "attack.text.max_words", *trainer} <= known


@pytest.mark.parametrize("value", ["4/255", "0.1", "0", "1"])
def test_eps_is_a_fraction_or_a_number_and_stays_as_it_was_written(value: str) -> None:
    composed = compose("train-mat", [f"attack.image.eps={value}"])
    assert str(composed.attack.image.eps) == value


def test_judges_are_attacks_of_their_own_that_leave_the_run_s_attack_alone() -> None:
    composed = compose("train-mat", ["judges.pgd.image.steps=50", "attack.image.steps=3"])
    assert set(composed.judges) == {"pgd", "words", "sep", "coattack", "sga", "sequential"}
    assert composed.judges.pgd.image.steps == 50 and composed.judges.sep.image.steps == 10
    assert composed.attack.image.steps == 3


@pytest.mark.parametrize("override", ["trainer.max_steps=abc", "trainer.lrr=1", "dataset.sizes=3", "seed=x", "new=1"])
def test_unknown_keys_and_wrong_types_are_refused(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        compose("train-mat", [override])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.batch_size=0"], "trainer.batch_size is 0, but must be at least 1"),
        (["trainer.warmup=2"], "trainer.warmup is 2.0, but must be from 0 to 1"),
        (["trainer.lr=nan"], "trainer.lr is nan"),
        (["trainer.schedule=cosin"], "did you mean 'cosine'"),
        (["evaluation.split=tests"], "did you mean 'test'"),
        (["dataset=karpathy"], "dataset.annotations has no value"),
        (["checkpoint=${nowhere}"], "cannot be resolved"),
        (["~seed"], "seed has no value"),
    ],
)
def test_values_that_no_run_could_work_with_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        schemas.check(compose("train-mat", overrides))


def test_every_bound_and_choice_belongs_to_a_key_that_exists() -> None:
    known = {name for command in COMMANDS for name in keys(compose(command, []))}
    assert {*schemas.BOUNDS, *schemas.CHOICES} <= known


def test_a_directory_of_the_user_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("# Mine.\n_target_: robustcli.data.Scenes\nsize: 64\n")
    argv = ["--config-dir", str(tmp_path)]
    assert compose("evaluate", ["dataset=mine"], argv).dataset.size == 64
    assert "mine" in config_groups.groups(argv)["dataset"] and "mine" not in config_groups.groups()["dataset"]
