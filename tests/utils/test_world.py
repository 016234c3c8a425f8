"""The place of a process among several, by the variables of torchrun and of Slurm."""

import pytest

from robustcli.utils.errors import UserError
from robustcli.utils.world import World, first_host, world_of

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu1", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "gpu[03-04]",
    "SLURM_JOB_ID": "7",
}


def test_torchrun_names_it_within_a_step_of_srun_too() -> None:
    assert world_of(TORCHRUN | SRUN) == World(3, 4, 1, "gpu1", 29500, "torchrun")


def test_a_step_of_srun_meets_at_its_first_host() -> None:
    world = world_of(SRUN)
    assert world is not None and world[:4] == (2, 4, 0, "gpu03") and 15_000 <= world.port < 30_000
    assert world_of(SRUN | {"SLURM_PROCID": "0"})[4] == world.port  # type: ignore[index]
    assert world_of(SRUN | {"SLURM_STEP_ID": "1"})[4] != world.port  # type: ignore[index]
    assert world_of(SRUN | {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "81"})[3:5] == ("10.0.0.1", 81)  # type: ignore[index]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"WORLD_SIZE": "4"},  # some clusters set it everywhere
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_JOB_ID": "7"},  # of a batch script, outside of any step
        TORCHRUN | {"RANK": "0", "WORLD_SIZE": "1"},
        SRUN | {"SLURM_STEP_NUM_TASKS": "1", "SLURM_PROCID": "0"},
    ],
)
def test_alone(environment: dict[str, str]) -> None:
    assert world_of(environment) is None


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu[03-07,12],login1", "gpu03"),
        ("a1", "a1"),
        ("a1,b2", "a1"),
        ("n[1,3]-ib", "n1-ib"),
        ("rack1node[001-010]", "rack1node001"),
    ],
)
def test_hosts_as_slurm_writes_them(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_what_makes_no_sense_is_a_sentence() -> None:
    with pytest.raises(UserError, match="WORLD_SIZE=two, which is no number"):
        world_of(TORCHRUN | {"WORLD_SIZE": "two"})
    with pytest.raises(UserError, match="torchrun says that this is process 4 of 4, counted from 0"):
        world_of(TORCHRUN | {"RANK": "4"})
