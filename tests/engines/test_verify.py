"""`verify`: what a run stored is judged again, and what was tampered with is found."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from robustcli.cli.launch import launch
from robustcli.cli.validate import as_job
from robustcli.cli.verify import verify as verify_directory
from robustcli.config.compose import compose
from robustcli.engines import attack
from robustcli.engines.verify import Verification, compare_records, judge_again, verify
from robustcli.utils.errors import UserError

SMALL = ["dataset.train=16", "dataset.val=16", "dataset.test=16", "evaluation.limit=8", "evaluation.batch_size=3"]
QUICK = [*SMALL, "diagnostics.extent=off", "evaluation.eps_curve=[]", "evaluation.resamples=20"]
WORDS = [*QUICK, "attack=sep", "attack.image.steps=2"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("attack") / "run"
    assert launch("attack", [*WORDS, f"hydra.run.dir={place}"]) == 0
    return place


@pytest.fixture(scope="module")
def loaded() -> Any:
    return load(*WORDS)


def load(*words: str) -> Any:
    config = compose("attack", words, with_hydra=True)
    with as_job(config):
        return attack.load(config)


def judged(place: Path, loaded: Any, records: pd.DataFrame | None = None) -> Verification:
    manifest = json.loads((place / "manifest.json").read_text())
    return verify(place, manifest, pd.read_parquet(place / "records.parquet") if records is None else records, loaded)


def test_a_run_as_it_was_left_is_confirmed_from_the_command_line(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verify_directory(finished) == 0
    count = len(pd.read_parquet(finished / "records.parquet"))
    assert f"confirmed: {count} of {count} records judged again" in capsys.readouterr().out


def test_each_of_a_hundred_changed_records_is_found(finished: Path, loaded: Any) -> None:
    records = pd.read_parquet(finished / "records.parquet")
    again, draw = pd.concat(judge_again(finished, loaded)[0], ignore_index=True), np.random.default_rng(0)
    assert not compare_records(records, again)[0]
    judged_columns = [
        "clean_rank",
        "adversarial_rank",
        "status",
        "mean",
        "worst",
        "map_at_r",
        "norm",
        "edits",
        "caption",
    ]
    for _ in range(100):
        row, name = int(draw.integers(len(records))), str(draw.choice([*judged_columns, "query_id", "eps"]))
        changed = records.astype({"status": object})
        old = changed[name].iloc[row]
        changed.loc[changed.index[row], name] = _another(old, changed[name].dtype)
        different, _, unjudged = compare_records(changed, again)
        assert different or unjudged, (row, name, old)


def _another(value: Any, dtype: Any) -> Any:
    """Another value of the column: one more, the other, or a word more."""
    if pd.api.types.is_bool_dtype(dtype):
        return not value
    if pd.api.types.is_numeric_dtype(dtype):
        return 1 if pd.isna(value) else value + 1
    return "another" if pd.isna(value) else f"{value}x"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


def test_another_image_is_found_by_what_it_does_and_by_its_file(copied: Path, loaded: Any) -> None:
    path = copied / "adversarial" / "images-000003.safetensors"
    content = load_file(path)
    clean = loaded.evaluation.evaluator.images(loaded.groups[0].bare.model, content["rows"])
    content["images"] = (content["images"] + clean) / 2
    save_file(content, path)
    found = judged(copied, loaded)
    assert found.files == [("adversarial/images-000003.safetensors", "was changed")]
    assert {name for _, name, _, _ in found.different} & {"norm", "adversarial_rank", "map_at_r"}
    content["images"] = torch.rand(content["images"].shape, generator=torch.Generator().manual_seed(0))
    save_file(content, path)
    (sentence,) = judged(copied, loaded).broken
    assert "sep" in sentence and "but eps is" in sentence
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be judged" in judged(copied, loaded).broken[0]
    path.unlink()
    found = judged(copied, loaded)
    assert "cannot be judged" in found.broken[0] and found.files[0][1] == "is missing"


def test_another_text_beyond_the_budget_is_found(copied: Path, loaded: Any) -> None:
    path = copied / "adversarial" / "images-000000.safetensors"
    content = load_file(path)
    captions = json.loads(bytes(content["captions"].tolist()))
    captions[0] = "all of the words are others now"
    content["captions"] = torch.tensor(list(json.dumps(captions).encode()), dtype=torch.uint8)
    save_file(content, path)
    assert "sep" in judged(copied, loaded).broken[0]


def test_another_data_set_and_other_weights_are_named(finished: Path) -> None:
    found = judged(finished, load(*WORDS, "dataset.seed=1", "model.checkpoint=null", "+model.pretrained=random"))
    assert {name.partition(".")[0] for name, _, _ in found.inputs} == {"data", "weights"} and not found.holds


def test_several_models_behind_a_purifier_are_judged_with_each_access(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["dataset=digits", "model=digits", "evaluation=smoke", "evaluation.limit=4", "evaluation.keep_inputs=true"]
    words += ["attacks=none", "+attack@attacks.pgd=pgd", "attacks.pgd.steps=2", "+attack@attacks.ddn=ddn"]
    words += ["attacks.ddn.steps=3", "diagnostics=off", "~baselines.blur", "~baselines.jpeg", "purifier=noise"]
    assert (
        launch("purify", [*words, "purifier.draws=1", "evaluation.eps_curve=[1]", f"hydra.run.dir={tmp_path}/run"]) == 0
    )
    capsys.readouterr()
    assert verify_directory(tmp_path / "run") == 0
    assert "confirmed" in capsys.readouterr().out


def test_what_cannot_be_verified_says_so(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no run"):
        verify_directory(tmp_path)
    place = tmp_path / "bare"
    assert launch("evaluate", [*SMALL, "attacks=none", "diagnostics=off", f"hydra.run.dir={place}"]) == 0
    with pytest.raises(UserError, match="keep_inputs=true"):
        verify_directory(place)
