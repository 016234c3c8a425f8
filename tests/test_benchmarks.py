"""The benchmarks run and report what they should; what they measured is nobody's business here."""

import importlib
import io
import math
import re
import subprocess
from importlib.util import find_spec

import pytest
from rich.console import Console

from benchmarks import gpu_check
from benchmarks.__main__ import NAMES, main
from benchmarks.report import Row, cpu_seconds, show

PARTS = {
    "mat_step": {"MAT step", "image-only step"},
    "text_attack": {f"{name}, {search}" for name in ("tiny", "small CLIP") for search in ("exhaustive", "importance")}
    | {"small CLIP, BERT-Attack"},
    "data": {
        f"{name}, {part}" for name in ("64 scenes", "16 JPEG files") for part in ("made", "opened again", "a batch")
    },
    "gallery": {
        "COCO: 60 x 300 and 300 x 60, ranks",
        "large: 40 x 2,000 and 200 x 400, ranks",
        "large: PGD of one step, 8 images",
        "large: Sep-Attack of one step, 8 images",
    },
    "minimum_norm": {
        "small network, DeepFool, 30 classes",
        "small network, DeepFool, top 10",
        "small network, C&W, 10 steps",
    },
    "zero_shot": {"colours, few fall", "colours, more than half fall", "tiny, batch 2, APGD of 2 steps"},
    "bounded": {"digits, AutoAttack, eps 0.11", "digits, PGD, 5 steps, eps 0.11", "digits, PGD, 5 steps, eps 0.002"},
    "purification": {
        f"{what}, 4 draws, {part}"
        for what in (
            "2 images of 32 px",
            "e4e and StyleGAN2, 1 image",
            "Style-Transformer and StyleGAN2, 1 image",
            "A-VAE, 2 images",
        )
        for part in ("forward", "forward and backward")
    },
    "augment_quality": {"text measures"},
    "towers": {"clean step", "gradient to the pixels"},
    "augmentation": {
        "MAT+ step",
        "paraphrase, 5 pairs for each of 16 images",
        "redraw, 5 pairs for each of 16 images",
    },
    "together": {"MAT step, negatives=micro, 2 processes", "MAT step, negatives=step, 2 processes"},
    "processes": {
        "APGD on 4 digits, 2 processes",
        "judging of verify, 2 x digits, AutoAttack",
        "start of verify, 2 x digits, AutoAttack",
    },
    "rivals": {f"plain, {search}" for search in ("DeepFool", "FMN", "DDN", "ALMA", "C&W", "Square", "AutoAttack")},
}
RIVALS = ("adv_lib", "art", "foolbox", "pyautoattack")


@pytest.mark.parametrize("name", [name for name in NAMES if name != "compiled"])  # it takes minutes
def test_each_measures_its_parts(name: str) -> None:
    if name == "rivals" and (absent := [library for library in RIVALS if find_spec(library) is None]):
        pytest.skip(f"needs {', '.join(absent)}: make rivals")
    rows = importlib.import_module(f"benchmarks.{name}").run(quick=True)
    assert {row.what for row in rows} == PARTS[name]
    assert all(row.ours > 0 and row.other > 0 and math.isfinite(row.ratio) for row in rows)
    assert any(row.met is not None for row in rows), "no row has a target"
    if name == "text_attack":
        _check_edits(rows)
    if name == "purification":
        assert all(float(row.note.split()[-1]) < 1e-4 for row in rows), "the plain ways give other logits"


def _check_edits(rows: list[Row]) -> None:
    for row in rows:
        equal, count, edited = (int(number) for number in re.findall(r"\d+", row.note))
        assert equal == count, "the plain search and the batched one disagree"
        assert edited > 0, "a search that edits nothing compares nothing"


def test_a_target_is_met_on_its_own_side() -> None:
    assert Row(what="", against="", ours=1.1, other=1.0, at_most=1.15).met
    assert not Row(what="", against="", ours=1.2, other=1.0, at_most=1.15).met
    assert Row(what="", against="", ours=1.0, other=6.0, at_least=5).met
    assert not Row(what="", against="", ours=1.0, other=4.0, at_least=5).met
    assert Row(what="", against="", ours=1.0, other=4.0).met is None


def test_the_sides_take_turns_and_the_first_round_is_not_counted() -> None:
    called: list[str] = []
    seconds = cpu_seconds({"a": lambda: called.append("a"), "b": lambda: called.append("b")}, repeats=2)
    assert called == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_a_table_says_how_it_was_made() -> None:
    text = io.StringIO()
    row = Row(what="work", against="floor", ours=2e-3, other=1.0, at_least=5)
    show("title", [row], "python -m benchmarks title", Console(file=text, width=120))
    assert all(part in text.getvalue() for part in ("python -m benchmarks title", "2 ms", "500x", ">= 5x", "yes"))


def test_an_unknown_name_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["mat_stepp"])
    assert "choose one of mat_step" in capsys.readouterr().err


def test_the_check_of_a_gpu_runs_on_a_cpu_and_a_row_that_fails_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: gpu_check.Bench) -> list[gpu_check.Line]:
        raise RuntimeError("no such kernel")

    def table() -> tuple[int, str]:
        text = io.StringIO()
        code = gpu_check.main(["--tiny"], Console(file=text, width=200))
        return code, text.getvalue()

    code, shown = table()
    assert code == 0 and "failed" not in shown and "no GPU" in shown
    for row in ("parity of APGD", "MAT step", "bf16", "NVAE", "StyleGAN2", "waits of Square", "channels last"):
        assert row in shown
    monkeypatch.setattr(gpu_check, "CHECKS", {"broken": broken, "parity": gpu_check.parity})
    code, shown = table()
    assert code == 1 and "failed: RuntimeError: no such kernel" in shown and "parity of APGD" in shown


def test_the_lines_of_one_check_are_read_from_its_process(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    line = gpu_check.Line(what="work", seconds=0.5, waits=2.0)
    monkeypatch.setattr(gpu_check, "CHECKS", {"one": lambda _: [line]})
    assert gpu_check.main(["--tiny", "--only", "one"]) == 0
    answers = iter([capsys.readouterr().out, ""])
    done = lambda *_, **__: subprocess.CompletedProcess([], 9, next(answers), "Killed")  # noqa: E731
    monkeypatch.setattr(subprocess, "run", done)
    assert gpu_check._in_process("one") == [line]
    (died,) = gpu_check._in_process("one")
    assert died.failed and "exit 9: Killed" in died.note
