"""Every file of conf/ composes, and the schemas refuse what no run could work with."""

import re
from collections import Counter
from pathlib import Path

import pytest
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from robustcli.cli.launch import launch, written_out
from robustcli.config import checks, schemas
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose, keys
from robustcli.config.schemas import DiagnosticsSettings
from robustcli.utils.errors import UserError

COMMANDS = [name.replace("_", "-") for name in schemas.SCHEMAS]
# Each choice of each group, with the first command that has it; experiments have tests of their own.
CHOICES = {
    (group, choice): command
    for command in reversed(COMMANDS)
    for group, names in config_groups.groups_of(command).items()
    for choice in names
    if group != "experiment"
}
# The files that only the user can name.
FILES = {
    "karpathy": ["dataset.annotations=a.json", "dataset.root=images"],
    "table": ["dataset.table=a.csv", "dataset.root=images"],
    "coco_captions": ["dataset.annotations=a.json", "dataset.root=images"],
    "parquet": ["dataset.file=a.parquet"],
    "shards": ["dataset.pattern='test-{0..1}.tar'"],
    "class_folders": ["dataset.root=images"],
    "class_shards": ["dataset.root=shards"],
    **{name: ["dataset.root=images"] for name in ("celebahq_gender", "celeba64_identities", "stanford_cars4")},
    "npz": ["dataset.file=a.npz"],
    "sentences": ["dataset.table=a.csv"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes_without_arguments(command: str) -> None:
    composed = compose(command, [])
    checks.check(composed)
    assert composed.seed == 0 and composed.checkpoint is None and composed.resume is None


@pytest.mark.parametrize(("group", "choice"), CHOICES)
def test_every_choice_of_every_group_composes_and_says_what_it_is(group: str, choice: str) -> None:
    command = CHOICES[group, choice]
    rest = ["attacks=none"] if command in ("train-mat", "train-classifier") and group != "attacks" else []  # faster
    chosen = f"{group}@objective" if group == "generator_objective" else group  # it stands where objectives do
    rest += ["objective.classifier=digits"] if choice == "denoising" else []
    composed = compose(command, [f"{chosen}={choice}", *rest, *(FILES.get(choice, []) if group == "dataset" else [])])
    checks.check(composed)
    assert OmegaConf.to_container(composed, resolve=True)
    about = config_groups.summary(config_groups.conf_directory() / group / f"{choice}.yaml")
    assert about, "its first comment line is missing"


def test_every_group_belongs_to_a_command() -> None:
    assert {group for group, _ in CHOICES} | {"experiment"} == set(config_groups.groups())


@pytest.mark.parametrize("command", COMMANDS)
def test_device_and_threads_are_keys_of_the_command_itself(command: str) -> None:
    composed = compose(command, ["device=cpu", "threads=2"])
    assert (composed.device, composed.threads) == ("cpu", 2)
    assert not {"trainer.device", "trainer.threads"} & set(keys(composed))


def test_the_keys_that_a_user_will_guess_exist() -> None:
    known = set(keys(compose("train-mat", [])))
    trainer = {f"trainer.{name}" for name in ("max_steps", "batch_size", "lr")}
    assert {
        "seed",
        "checkpoint",
        "resume",
        "threads",
        "device",
        "threat.eps",
        "threat.words",
        *trainer,
    } <= known


@pytest.mark.parametrize("value", ["4/255", "0.1", "0", "1"])
def test_eps_is_a_fraction_or_a_number_and_stays_as_it_was_written(value: str) -> None:
    composed = compose("train-mat", [f"threat.eps={value}"])
    assert str(composed.threat.eps) == value


@pytest.mark.parametrize(
    ("overrides", "eps"),
    [
        (["dataset=cifar10"], "8/255"),
        (["dataset=cifar100"], "8/255"),
        (["dataset=mnist"], "0.3"),
        (["dataset=scenes"], "4/255"),
        (["dataset=mnist", "threat.norm=l2"], "0.5"),
        (["dataset=cifar10", "threat.norm=l2", "threat.eps=1"], "1"),
        (["dataset=mnist", "threat=text"], "0"),
    ],
)
def test_without_a_radius_it_is_that_of_the_norm_and_the_data_set(overrides: list[str], eps: str) -> None:
    """4/255 in L2 is no attack at all: everything would stand, and look robust."""
    assert str(compose("evaluate", overrides).threat.eps) == eps


def test_a_suite_has_attacks_of_its_own_that_leave_the_run_s_attack_alone() -> None:
    composed = compose("train-mat", ["attacks.pgd.steps=50", "attack.image.steps=3"])
    assert set(composed.attacks) == {"pgd", "words", "sep", "coattack", "sga", "sequential", "apgd_ensemble"}
    assert composed.attacks.pgd.steps == 50 and composed.attacks.sep.image.steps == 10
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
        checks.check(compose("train-mat", overrides))


def test_every_key_of_the_schemas_gets_its_value_from_a_file() -> None:
    """A bound or a choice stands at its field, so that it belongs to a key that exists."""
    for command in COMMANDS:
        composed = compose(command, [])
        missing = OmegaConf.missing_keys(composed)
        assert not missing, f"{command}: {missing}"


@pytest.mark.parametrize(("written", "meant"), [("off", "off"), ("'off'", "off"), ("full", "full")])
def test_a_choice_that_yaml_reads_as_a_boolean_is_meant_as_it_is_written(
    tmp_path: Path, written: str, meant: str
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n# Mine.\ndiagnostics: {written}\n")
    composed = compose("evaluate", ["attacks=none", "experiment=mine"], ["--config-dir", str(tmp_path)])
    checks.check(composed)
    assert composed.diagnostics == {"extent": meant, "share": 0.25}


def test_what_is_no_choice_is_refused_with_the_choices(tmp_path: Path) -> None:
    for value in ("true", "1", "null"):
        with pytest.raises(UserError, match=r"diagnostics\.extent is .*auto, full, strict, off"):
            checks.check(compose("evaluate", ["attacks=none", f"diagnostics={value}"]))


@pytest.mark.parametrize(
    "command",
    [name for name in COMMANDS if name not in ("train-generator", "learn-alphas", "augment", "augment-quality")],
)
def test_diagnostics_are_a_node_or_a_word(command: str) -> None:
    default = DiagnosticsSettings(extent="auto")
    for words, extent, share in (
        ([], "auto", default.share),
        (["diagnostics=off"], "off", default.share),
        (["diagnostics.share=1", "diagnostics=auto"], "auto", 1.0),
        (["diagnostics=full", "diagnostics.share=null"], "full", None),
        (["diagnostics={extent: strict}"], "strict", default.share),
        (["~diagnostics.share"], "auto", default.share),
    ):
        composed = compose(command, written_out(command, words))
        checks.check(composed)
        assert composed.diagnostics == {"extent": extent, "share": share}, words


@pytest.mark.parametrize(
    ("written", "words", "extent", "share"),
    [
        ("off", ["diagnostics=full"], "full", 0.25),
        ("{share: 3}", ["diagnostics=strict"], "strict", 3.0),
        ("{extent: full}", ["diagnostics.share=2"], "full", 2.0),
    ],
)
def test_an_experiment_may_write_diagnostics_either_way(
    written: str, words: list[str], extent: str, share: float, tmp_path: Path
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n# Mine.\ndiagnostics: {written}\n")
    argv = written_out("evaluate", ["--config-dir", str(tmp_path), "experiment=mine", *words])
    composed = compose("evaluate", argv[2:], argv)
    checks.check(composed)
    assert composed.diagnostics == {"extent": extent, "share": share}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("diagnostics.share=abc", "diagnostics.share is 'abc', but must be a number, or null"),
        ("diagnostics.share=-1", "diagnostics.share is -1.0, but must be from 0 to 1000"),
        ("+diagnostics={shares: 1}", "diagnostics has no key 'shares': did you mean 'share'?"),
        ("diagnostics=null", "diagnostics.extent is null, but must be one of auto, full, strict, off"),
    ],
)
def test_diagnostics_that_mean_nothing_are_refused(word: str, said: str) -> None:
    with pytest.raises(UserError, match=re.escape(said)):
        checks.check(compose("evaluate", written_out("evaluate", [word])))


def test_a_key_of_a_node_that_an_experiment_writes_as_a_word_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\n# Mine.\ndiagnostics: full\n")
    words = ["--config-dir", str(tmp_path), "experiment=mine", "diagnostics.share=2"]
    assert launch("evaluate", [*words, f"hydra.run.dir={tmp_path / 'run'}"]) == 2
    assert "write it there as diagnostics: {extent: WORD}" in capsys.readouterr().err


def test_no_schema_has_the_name_of_another_class() -> None:
    """A reader who looks for `Augmentation` or `Attack` finds one class."""
    package = config_groups.conf_directory().parent / "robustcli"
    found = Counter(
        re.findall(r"^class (\w+)", "\n".join(file.read_text() for file in package.rglob("*.py")), re.MULTILINE)
    )
    own = re.findall(r"^class (\w+)", (package / "config" / "schemas.py").read_text(), re.MULTILINE)
    assert own and [name for name in own if found[name] > 1] == []


def test_a_directory_of_the_user_adds_choices(tmp_path: Path) -> None:
    (tmp_path / "dataset").mkdir()
    (tmp_path / "dataset" / "mine.yaml").write_text("# Mine.\n_target_: robustcli.data.Scenes\nsize: 64\n")
    argv = ["--config-dir", str(tmp_path)]
    assert compose("evaluate", ["dataset=mine"], argv).dataset.size == 64
    assert "mine" in config_groups.groups(argv)["dataset"] and "mine" not in config_groups.groups()["dataset"]
