"""The table of a sweep, also where jobs fail."""

import math
from pathlib import Path
from typing import Any

import hydra
import pandas as pd
import pytest
from omegaconf import DictConfig, OmegaConf

from robustcli.report.sweep import (
    SweepTable,
    collect,
    jobs_grid,
    over_datasets,
    over_seeds,
    print_sweep,
    seeds_grid,
    t_interval,
    write,
)
from robustcli.runs import manifest
from robustcli.runs.run import Run
from robustcli.runs.sweeps import SweepJob, write_jobs
from robustcli.utils.errors import UserError

VALUES = {("mat", 0): 0.5, ("mat", 1): 0.6, ("mat", 2): 0.4, ("tecoa", 0): 0.1, ("tecoa", 1): 0.3}


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two defences over seeds; the last seed of tecoa failed, one job was killed, one never began."""
    for number, ((defense, seed), value) in enumerate(VALUES.items()):
        job(tmp_path / str(number), defense, seed, value)
    with pytest.raises(UserError):
        job(tmp_path / "10", "tecoa", 2, None)
    Run.open("train-mat", {}, tmp_path / "11", ["defense=text", "seed=0"])
    manifest.record_refusal(tmp_path / "12", ["defense=text", "+trainer.lr=1", "seed=1"], "trainer.lr is 1")
    (tmp_path / "unrelated").mkdir()
    return tmp_path


def job(directory: Path, defense: str, seed: int, value: float | None) -> None:
    with Run.open("train-mat", {"seed": seed}, directory, [f"defense={defense}", f"seed={seed}"]) as run:
        if value is None:
            raise UserError("dataset.root is missing: put the images there")
        run.write_metrics({"sga": {"recall_at_1": value / 2}}, pd.DataFrame())
        run.finish(value)


def test_one_row_a_job_with_overrides_status_metrics_and_error(sweep: Path) -> None:
    table = collect(sweep)
    assert list(table.columns) == [
        *("defense", "seed", "trainer.lr", "status", "sga/recall_at_1", "objective", "directory", "error")
    ]
    assert table["status"].tolist() == ["done"] * 5 + ["failed", "stopped", "failed"]
    assert table["objective"].tolist()[:5] == list(VALUES.values())
    assert table["error"].tolist()[5] == "dataset.root is missing: put the images there"
    assert table["error"].tolist()[7] == "trainer.lr is 1"
    assert [Path(place).name for place in table["directory"]] == ["0", "1", "2", "3", "4", "10", "11", "12"]


def test_a_sweep_that_runs_has_a_row_for_every_job_that_it_was_asked_for(tmp_path: Path) -> None:
    words = [["defense=mat", f"seed={seed}"] for seed in range(4)]
    write_jobs(tmp_path, [SweepJob(number, f"{number}", each) for number, each in enumerate(words)])
    job(tmp_path / "0", "mat", 0, 0.5)
    with Run.open("train-mat", {"seed": 1}, tmp_path / "1", words[1]) as run:
        table = collect(tmp_path)
        assert table["status"].tolist() == ["done", "running", "waiting", "waiting"]
        assert table["seed"].tolist() == ["0", "1", "2", "3"] and table["directory"].notna().all()
        assert jobs_grid(table).title == "4 jobs: 1 done, 1 running, 2 waiting"
        run.finish(0.25)
    assert collect(tmp_path)["status"].tolist() == ["done", "done", "waiting", "waiting"]


def test_means_over_seeds_leave_failed_jobs_out(sweep: Path) -> None:
    write(sweep)
    means = pd.read_csv(sweep / "seeds.csv")
    row = means[(means["defense"] == "mat") & (means["metric"] == "objective")].iloc[0]
    assert row["seeds"] == 3 and row["mean"] == pytest.approx(0.5)
    half = 4.302653 * 0.1 / math.sqrt(3)
    assert (row["low"], row["high"]) == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)
    tecoa = means[(means["defense"] == "tecoa") & (means["metric"] == "sga/recall_at_1")].iloc[0]
    assert tecoa["seeds"] == 2 and tecoa["mean"] == pytest.approx(0.1)


def test_no_means_without_several_seeds(tmp_path: Path) -> None:
    job(tmp_path / "0", "mat", 0, 0.5)
    job(tmp_path / "1", "tecoa", 0, 0.4)
    assert over_seeds(collect(tmp_path)) is None
    write(tmp_path)
    assert not (tmp_path / "seeds.csv").exists()


def test_setting_with_one_seed_has_a_mean_without_interval(tmp_path: Path) -> None:
    for number, (defense, seed) in enumerate([("mat", 0), ("mat", 1), ("tecoa", 0)]):
        job(tmp_path / str(number), defense, seed, 0.5)
    means = over_seeds(collect(tmp_path))
    assert means is not None
    alone = means[means["defense"] == "tecoa"].iloc[0]
    assert alone["mean"] > 0 and math.isnan(alone["low"])


def test_a_seed_of_a_part_that_is_that_of_the_job_is_no_setting(tmp_path: Path) -> None:
    for seed, other, value in ((0, 0, 0.2), (1, 1, 0.4), (2, 0, 0.9)):
        words = [f"seed={seed}", f"dataset.seed='{other}'"]
        with Run.open("train-mat", {"seed": seed}, tmp_path / str(seed), words) as run:
            run.finish(value)
    means = over_seeds(collect(tmp_path).iloc[:2])
    assert means is not None and means["mean"].tolist() == pytest.approx([0.3])
    means = over_seeds(collect(tmp_path))
    assert means is not None and means.loc[means["dataset.seed"] == "0", "mean"].tolist() == pytest.approx([0.55])


def set_job(directory: Path, dataset: str, model: str, figures: dict[str, float] | None) -> None:
    words = [f"dataset={dataset}", f"model={model}"]
    with Run.open("evaluate", {"dataset": dataset}, directory, words) as run:
        if figures is None:
            raise UserError("dataset.root is missing: put the images there")
        run.write_metrics(
            {"model": {key: {"recall_at_1": value, "queries": 9} for key, value in figures.items()}}, pd.DataFrame()
        )
        run.finish(min(figures.values()))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    """Two models on three data sets; the second model failed on one."""
    figures = {("a", "pets"): 0.9, ("a", "dtd"): 0.5, ("a", "cars"): 0.1, ("b", "pets"): 0.8, ("b", "dtd"): 0.6}
    for number, ((model, dataset), value) in enumerate(figures.items()):
        set_job(tmp_path / str(number), dataset, model, {"clean": value, "apgd": value / 2})
    with pytest.raises(UserError):
        set_job(tmp_path / "5", "cars", "b", None)
    return tmp_path


def test_the_mean_over_data_sets_is_unweighted_and_says_what_it_lacks(sets: Path) -> None:
    write(sets)
    means = pd.read_csv(sets / "datasets.csv").set_index("model")
    assert means.loc["a", "model/clean/recall_at_1"] == pytest.approx(0.5)
    assert means.loc["a", "model/apgd/recall_at_1"] == pytest.approx(0.25)
    assert means.loc["b", "model/clean/recall_at_1"] == pytest.approx(0.7)
    assert means[["datasets", "asked"]].values.tolist() == [[3, 3], [2, 3]]
    assert pd.isna(means.loc["a", "missing"]) and means.loc["b", "missing"] == "cars"
    assert not any("queries" in column for column in means.columns)


def test_the_table_ends_with_the_means_over_data_sets(sets: Path) -> None:
    grid = jobs_grid(collect(sets), ("*/recall_at_1",))
    assert grid.columns == ["dataset", "model", "status", "model/clean/recall_at_1", "model/apgd/recall_at_1", "error"]
    assert grid.rows[6:] == [["mean of 3", "a", "", "0.5", "0.25", ""], ["mean of 2 of 3", "b", "", "0.7", "0.35", ""]]
    assert "1 of 6 jobs failed" in grid.note and grid.note.endswith("is not one of all: without cars.")


def test_a_figure_that_one_data_set_lacks_has_no_mean(tmp_path: Path) -> None:
    set_job(tmp_path / "0", "pets", "a", {"clean": 0.9, "apgd": 0.5})
    set_job(tmp_path / "1", "dtd", "a", {"clean": 0.7})
    grid = jobs_grid(collect(tmp_path), ("*/recall_at_1",))
    assert grid.rows[-1] == ["mean of 2", "", "0.8", ""]


def test_there_is_no_mean_over_one_data_set_or_of_none_that_ended(tmp_path: Path) -> None:
    set_job(tmp_path / "0", "pets", "a", {"clean": 0.9})
    set_job(tmp_path / "1", "dtd", "b", {"clean": 0.9})
    assert over_datasets(collect(tmp_path)) is None
    for number, name in enumerate(("cars", "eurosat")):
        with pytest.raises(UserError):
            set_job(tmp_path / str(10 + number), name, "c", None)
    assert over_datasets(collect(tmp_path)) is None


@pytest.mark.parametrize(
    ("count", "quantile"), [(2, 12.70620), (3, 4.30265), (11, 2.22814), (12, 2.20099), (31, 2.04227)]
)
def test_t_interval_has_the_quantile_of_student(count: int, quantile: float) -> None:
    values = [float(number) for number in range(count)]
    low, high = t_interval(values)
    error = pd.Series(values).std() / math.sqrt(count)
    assert (high - low) / 2 / error == pytest.approx(quantile, abs=6e-6)
    assert (high + low) / 2 == pytest.approx((count - 1) / 2)


def test_grids_show_what_varies_and_what_failed(sweep: Path) -> None:
    table = collect(sweep)
    grid = jobs_grid(table, ("objective", "*recall*"))
    assert grid.columns == ["defense", "seed", "trainer.lr", "status", "objective", "sga/recall_at_1", "error"]
    assert grid.rows[0] == ["mat", "0", "", "done", "0.5", "0.25", ""]
    assert grid.note.startswith("2 of 8 jobs failed")
    means = over_seeds(table)
    assert means is not None
    seeds = seeds_grid(means)
    assert seeds.columns == ["metric", "mat", "tecoa"]
    assert seeds.rows == [["objective", "0.50 ±0.25", "0.2 ±1.3"]]


def test_show_prints_both_tables(sweep: Path, capsys: pytest.CaptureFixture[str]) -> None:
    print_sweep(sweep)
    out = capsys.readouterr().out
    assert "8 jobs" in out and "Over" in out and str(sweep / "sweep.csv") in out.replace("\n", "")


def task(config: DictConfig) -> float:
    directory = Path(hydra.core.hydra_config.HydraConfig.get().runtime.output_dir)
    overrides = list(hydra.core.hydra_config.HydraConfig.get().overrides.task)
    with Run.open("train-mat", config, directory, overrides) as run:
        if config.seed == 1:
            raise RuntimeError("seed one fails")
        return run.finish(float(config.seed))


@pytest.mark.parametrize("seeds", ["0,2", "0,1,2"])
def test_callback_writes_the_table_of_a_real_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seeds: str
) -> None:
    place = {"dir": str(tmp_path / "sweep"), "subdir": "${hydra.job.num}"}
    config: dict[str, Any] = {"seed": 0, "hydra": {"sweep": place, "run": {"dir": str(tmp_path / "run")}}}
    config["hydra"]["callbacks"] = {"sweep_table": {"_target_": "robustcli.report.sweep.SweepTable"}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "main.yaml")
    monkeypatch.setattr("sys.argv", ["robustcli", "--multirun", f"seed={seeds}"])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    run = hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="main")(task)
    if "1" in seeds:
        with pytest.raises(RuntimeError):
            run()
    else:
        run()
        assert "table:" in capsys.readouterr().out
    table = pd.read_csv(tmp_path / "sweep" / "sweep.csv")
    assert table["status"].tolist() == ["failed" if seed == "1" else "done" for seed in seeds.split(",")]
    assert not list(tmp_path.glob("run/**/sweep.csv"))


def test_a_table_that_cannot_be_written_ends_the_sweep_with_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = {"dir": str(tmp_path / "sweep"), "subdir": "${hydra.job.num}"}
    config: dict[str, Any] = {"seed": 0, "hydra": {"sweep": place, "run": {"dir": str(tmp_path / "run")}}}
    config["hydra"]["callbacks"] = {"sweep_table": {"_target_": "robustcli.report.sweep.SweepTable"}}
    OmegaConf.save(OmegaConf.create(config), tmp_path / "main.yaml")
    (tmp_path / "sweep" / "sweep.csv").mkdir(parents=True)
    monkeypatch.setattr("sys.argv", ["robustcli", "--multirun", "seed=0,2"])
    with pytest.raises(SystemExit) as ended:
        hydra.main(version_base="1.3", config_path=str(tmp_path), config_name="main")(task)()
    assert ended.value.code == 1
    assert "error: the table of the sweep is not written: " in capsys.readouterr().err


def test_repr_names_the_metrics() -> None:
    assert repr(SweepTable(metrics=["a"])) == "SweepTable(metrics=('a',))"
