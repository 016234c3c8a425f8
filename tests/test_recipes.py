"""The recipes of CONTRIBUTING, typed as they stand: code and YAML outside of the package, then the commands."""

import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text()
DIGITS = ["dataset=digits", "model=digits"]
FEW = ["evaluation.limit=16", "evaluation.resamples=20", "evaluation.eps_curve=[]"]


def typed(directory: Path, title: str, group: str, name: str, target: str) -> None:
    """The module and the YAML of the recipe, in a folder of the user's own."""
    recipe = TEXT.partition(f"## {title}")[2].partition("\n## ")[0]
    code, config = (
        textwrap.dedent(re.findall(rf"```{kind}\n(.*?)```", recipe, flags=re.DOTALL)[0]) for kind in ("python", "yaml")
    )
    assert target in config
    module = f"my_{name}"
    (directory / f"{module}.py").write_text(code)
    (directory / "my_conf" / group).mkdir(parents=True)
    own = config.replace(target, f"{module}.{target.rpartition('.')[2]}")
    (directory / "my_conf" / group / f"{name}.yaml").write_text(own)


def robustcli(directory: Path, *words: str) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "robustcli", *words, "--config-dir", "my_conf"],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(directory), str(ROOT)]), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def figures(directory: Path) -> dict[str, float]:
    found: dict[str, float] = json.loads((directory / "metrics.json").read_text())
    return found


def test_an_attack(tmp_path: Path) -> None:
    typed(tmp_path, "Add an attack", "attack", "bim", "robustcli.attacks.image.bim.BIM")
    assert "signed gradient steps" in robustcli(tmp_path, "list", "attack")
    words = [*DIGITS, *FEW, "attack=bim", "eps=64/255", "diagnostics=off", "hydra.run.dir=a"]
    robustcli(tmp_path, "attack", *words)
    assert figures(tmp_path / "a")["model/bim/image_to_class/recall_at_1"] < 0.5


def test_a_data_set(tmp_path: Path) -> None:
    typed(tmp_path, "Add a data set", "dataset", "stripes", "robustcli.data.stripes.Stripes")
    words = ["dataset=stripes", "model=small_cnn", "model.widths=[8]", *FEW, "trainer.max_steps=40"]
    robustcli(tmp_path, "train-classifier", *words, "trainer.batch_size=32", "trainer.lr=0.01", "hydra.run.dir=t")
    assert figures(tmp_path / "t")["objective"] > 0.9
    judged = ["evaluate", "dataset=stripes", "model=small_cnn", "attacks=none", "attack=pgd", "diagnostics=off"]
    robustcli(tmp_path, *judged, *FEW, "checkpoint=t/checkpoints/last.safetensors", "hydra.run.dir=e")
    assert figures(tmp_path / "e")["model/clean/image_to_class/recall_at_1"] > 0.9


def test_a_defence(tmp_path: Path) -> None:
    typed(tmp_path, "Add a defence", "purifier", "bit_depth", "robustcli.defenses.bit_depth.BitDepth")
    words = [*DIGITS, *FEW, "threat=image", "eps=32/255", "attacks=none", "attack=pgd", "diagnostics=off"]
    robustcli(tmp_path, "evaluate", *words, "purifier=bit_depth", "hydra.run.dir=e")
    found = figures(tmp_path / "e")
    names = {access: f"model+bit_depth/{access}/pgd@0.12549/image_to_class" for access in ("static", "adaptive")}
    robust = {access: found[f"{name}/recall_at_1"] for access, name in names.items()}
    assert robust["adaptive"] <= robust["static"] + 0.1, "an attacker who goes through the rounding is no weaker"


@pytest.mark.parametrize("title", ["Add an attack", "Add a model", "Add a data set", "Add a defence"])
def test_every_recipe_has_its_code_and_its_yaml(title: str) -> None:
    recipe = TEXT.partition(f"## {title}")[2].partition("\n## ")[0]
    assert all(len(re.findall(rf"```{kind}\n", recipe)) == 1 for kind in ("python", "yaml"))
