"""The recipes of CONTRIBUTING, typed as they stand.

Outside of the package they are run by the commands, inside of a copy of it by type checker and contract tests.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
DIGITS = ["dataset=digits", "model=digits"]
FEW = ["evaluation.limit=16", "evaluation.resamples=20", "evaluation.eps_curve=[]"]
NOISE = "# Images: L2 noise.\n_target_: robustcli.attacks.image.l2_noise.L2Noise\n"  # in text the recipe gives one YAML


@dataclass(frozen=True)
class Recipe:
    """A section of CONTRIBUTING: the class or function ``target`` of its code number ``code``, and its YAML."""

    title: str
    group: str
    target: str
    code: int = 0
    config: str | None = None

    @property
    def name(self) -> str:
        return self.target.split(".")[-2]

    def blocks(self, kind: str) -> list[str]:
        section = TEXT.partition(f"## {self.title}\n")[2].partition("\n## ")[0]
        return [textwrap.dedent(block) for block in re.findall(rf"```{kind}\n(.*?)```", section, flags=re.DOTALL)]

    def write(self, module: Path, config: Path, target: str) -> None:
        """Code and YAML at their places, the YAML with another name of the target."""
        module.write_text(self.blocks("python")[self.code])
        text = self.config or self.blocks("yaml")[0]
        assert self.target in text
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(text.replace(self.target, target))


BIM = Recipe("Add an attack", "attack", "robustcli.attacks.image.bim.BIM")
L2_NOISE = Recipe("Add an attack", "attack", "robustcli.attacks.image.l2_noise.L2Noise", code=1, config=NOISE)
PATCHES = Recipe("Add a model", "model", "robustcli.models.patches.patches")
STRIPES = Recipe("Add a data set", "dataset", "robustcli.data.stripes.Stripes")
BIT_DEPTH = Recipe("Add a defence", "purifier", "robustcli.defenses.bit_depth.BitDepth")
DISTURBED = Recipe("Add a training objective", "objective", "robustcli.defenses.objectives.disturb_label.DisturbLabel")
RECIPES = (BIM, L2_NOISE, PATCHES, STRIPES, BIT_DEPTH, DISTURBED)


def typed(directory: Path, recipe: Recipe) -> None:
    """The module and the YAML of the recipe, in a folder of the user's own."""
    module = f"my_{recipe.name}"
    own = f"{module}.{recipe.target.rpartition('.')[2]}"
    config = directory / "my_conf" / recipe.group / f"{recipe.name}.yaml"
    recipe.write(directory / f"{module}.py", config, own)


def executed(directory: Path, words: Sequence[str], *paths: Path) -> str:
    """The output of a Python module, run in ``directory``."""
    found = os.pathsep.join(map(str, paths))
    ended = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": found, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr
    return ended.stdout


def robustcli(directory: Path, *words: str) -> str:
    return executed(directory, ["robustcli", *words, "--config-dir", "my_conf"], directory, ROOT)


def figures(directory: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((directory / "metrics.json").read_text())
    return found


def test_an_attack(tmp_path: Path) -> None:
    typed(tmp_path, BIM)
    typed(tmp_path, L2_NOISE)
    assert "signed gradient steps" in robustcli(tmp_path, "list", "attack")
    words = [*DIGITS, *FEW, "attack=bim", "eps=64/255", "diagnostics=off", "hydra.run.dir=a"]
    assert "Baselines" not in robustcli(tmp_path, "attack", *words)
    assert figures(tmp_path / "a")["model/bim/image_to_class/recall_at_1"] < 0.5
    words = [*DIGITS, *FEW, "attacks=none", "attack=l2_noise", "threat=l2", "diagnostics=off", "hydra.run.dir=b"]
    sentence = "Baselines, too weak for a claim of robustness: l2_noise."
    assert sentence in " ".join(robustcli(tmp_path, "evaluate", *words).split())
    assert sentence in (tmp_path / "b" / "report.md").read_text()


def test_a_model(tmp_path: Path) -> None:
    typed(tmp_path, PATCHES)
    words = ["dataset=digits", "model=patches", *FEW, "trainer=smoke", "hydra.run.dir=t"]
    robustcli(tmp_path, "train-classifier", *words)
    assert (tmp_path / "t" / "checkpoints" / "last.safetensors").is_file()


def test_a_data_set(tmp_path: Path) -> None:
    typed(tmp_path, STRIPES)
    words = ["dataset=stripes", "model=small_cnn", "model.widths=[8]", *FEW, "trainer.max_steps=40"]
    robustcli(tmp_path, "train-classifier", *words, "trainer.batch_size=32", "trainer.lr=0.01", "hydra.run.dir=t")
    assert figures(tmp_path / "t")["objective"] > 0.9
    judged = ["evaluate", "dataset=stripes", "model=small_cnn", "attacks=none", "attack=pgd", "diagnostics=off"]
    robustcli(tmp_path, *judged, *FEW, "checkpoint=t/checkpoints/last.safetensors", "hydra.run.dir=e")
    assert figures(tmp_path / "e")["model/clean/image_to_class/recall_at_1"] > 0.9


def test_a_defence(tmp_path: Path) -> None:
    typed(tmp_path, BIT_DEPTH)
    words = [*DIGITS, *FEW, "threat=image", "eps=32/255", "attacks=none", "attack=pgd", "diagnostics=off"]
    robustcli(tmp_path, "evaluate", *words, "purifier=bit_depth", "hydra.run.dir=e")
    found = figures(tmp_path / "e")
    names = {access: f"model+bit_depth/{access}/pgd@0.12549/image_to_class" for access in ("static", "adaptive")}
    robust = {access: found[f"{name}/recall_at_1"] for access, name in names.items()}
    assert robust["adaptive"] <= robust["static"] + 0.1, "an attacker who goes through the rounding is no weaker"


def test_an_objective(tmp_path: Path) -> None:
    typed(tmp_path, DISTURBED)
    words = ["dataset=digits", "model=small_cnn", "model.channels=1", "model.widths=[8]", *FEW, "trainer.max_steps=5"]
    robustcli(tmp_path, "train-classifier", *words, "objective=disturb_label", "hydra.run.dir=t")
    assert "after disturb_label" in (tmp_path / "t" / "report.md").read_text()


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which every recipe has been followed."""
    copy = tmp_path_factory.mktemp("recipes") / "project"
    for name in ("robustcli", "conf", "tests"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", copy)
    for recipe in RECIPES:
        module = Path(*recipe.target.split(".")[:-1]).with_suffix(".py")
        recipe.write(copy / module, copy / "conf" / recipe.group / f"{recipe.name}.yaml", recipe.target)
    rows = '    "bim": BIM,\n    "l2_noise": L2Noise,\n'
    imports = "from robustcli.attacks.image.bim import BIM\nfrom robustcli.attacks.image.l2_noise import L2Noise\n"
    edit(copy / "robustcli/attacks/__init__.py", "\nATTACKS: ", "] = {\n", rows, "\n# Every attack", imports)
    row = '    "patches": Row("robustcli.models.patches.patches", "classifier"),\n'
    edit(copy / "robustcli/models/registry.py", "\nMODELS: ", "= {\n", row)
    return copy


def edit(file: Path, start: str, opening: str, rows: str, before: str = "", imports: str = "") -> None:
    """Rows at the head of a registry, and imports in front of a line."""
    head, mark, rest = file.read_text().partition(start)
    declared, brace, entries = rest.partition(opening)
    assert mark and brace
    text = head + mark + declared + brace + rows + entries
    file.write_text(text.replace(before, imports + before, 1) if before else text)


@pytest.mark.full_size  # half a minute, most of it for torch
def test_the_recipes_are_well_typed(tree: Path) -> None:
    files = [str(Path(*recipe.target.split(".")[:-1]).with_suffix(".py")) for recipe in RECIPES]
    executed(tree, ["mypy", "--follow-imports=silent", *files], tree)


def test_class_yaml_and_row_are_enough_for_the_contract(tree: Path) -> None:
    names = " or ".join(recipe.name for recipe in RECIPES)
    files = ["attacks/test_contract.py", "attacks/test_settings.py", "attacks/test_threat_of_the_call.py"]
    files += ["models/test_contract.py", "data/test_contract.py", "defenses/test_contract.py"]
    words = ["pytest", "-v", "-p", "no:cacheprovider", "-k", names, *(f"tests/{file}" for file in files)]
    said = executed(tree, words, tree)
    assert all(re.search(rf"\[.*{recipe.name}.*\] PASSED", said) for recipe in RECIPES), said
