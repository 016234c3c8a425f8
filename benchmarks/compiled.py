"""A training step with ``trainer.compile=true`` against one without, and the number of steps from which it pays."""

import time

from benchmarks.report import Row, cpu_seconds
from benchmarks.setting import Setting


def run(*, quick: bool = False) -> list[Row]:
    """The step of MAT, plain and compiled; the first compiled steps are timed apart."""
    repeats, warm = (2, 3) if quick else (12, 3)
    setting = Setting.of(batches=repeats + 1, batch_size=16 if quick else 128)
    step = setting.step("mat")
    plain = cpu_seconds({"plain": step}, repeats=repeats)["plain"]
    tower = setting.model.network.visual
    tower.compile()  # type: ignore[operator]
    started = time.perf_counter()
    for _ in range(warm):  # forward and backward with gradients to weights, and those to pixels alone
        step()
    spent = time.perf_counter() - started - warm * plain
    compiled = cpu_seconds({"compiled": step}, repeats=repeats)["compiled"]
    saved = plain - compiled
    pays = f"pays from step {round(spent / saved):,}" if saved > 0.01 * plain else "never pays on this machine"
    what = "MAT step, compiled"
    return [Row(what=what, against="plain", ours=compiled, other=plain, note=f"compiling takes {spent:.0f} s; {pays}")]
