"""The place of this process among several that torchrun or srun have started, from the environment; no torch here."""

import os
import re
from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from robustcli.utils.errors import UserError

_TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class World(NamedTuple):
    """The processes of a training, and which of them this one is.

    Attributes:
        rank: its number, from 0.
        size: how many there are, 2 or more.
        local_rank: its number on this machine.
        address, port: where they meet; the first one listens there.
        starter: for messages, ``torchrun`` or ``srun``.
    """

    rank: int
    size: int
    local_rank: int
    address: str
    port: int
    starter: str

    def refuse(self, why: str) -> NoReturn:
        """End this process, which several others equal: the first one says ``why``, the others are silent.

        Args:
            why: goes on after "srun has started 2 processes, ".

        Raises:
            UserError: it is the first one.
            SystemExit: it is another, with the code of a mistake.
        """
        if self.rank > 0:
            raise SystemExit(2)
        raise UserError(f"{self.starter} has started {self.size} processes, {why}")

    @property
    def once(self) -> str:
        """How to start one process, as it ends a sentence."""
        return "without torchrun" if self.starter == "torchrun" else "in one task (srun --ntasks=1)"


def world_of(environment: Mapping[str, str] = os.environ) -> World | None:
    """The place of this process by torchrun's variables, else by those of a step of srun; None: it is alone.

    torchrun sets RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Under srun they are SLURM_PROCID,
    SLURM_STEP_NUM_TASKS and SLURM_LOCALID, the first host of SLURM_STEP_NODELIST, and a port that comes from the
    numbers of job and step; MASTER_ADDR and MASTER_PORT go before them. SLURM_NTASKS is not read: a batch script has
    it too, outside of any step.

    Raises:
        UserError: a variable that is no number, or a rank beyond the size.
    """
    if all(name in environment for name in _TORCHRUN):
        size, rank = _number(environment, "WORLD_SIZE"), _number(environment, "RANK")
        local = _number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else rank
        address, port, starter = environment["MASTER_ADDR"], _number(environment, "MASTER_PORT"), "torchrun"
    elif "SLURM_STEP_NUM_TASKS" in environment and "SLURM_PROCID" in environment:
        size, rank = _number(environment, "SLURM_STEP_NUM_TASKS"), _number(environment, "SLURM_PROCID")
        local = _number(environment, "SLURM_LOCALID") if "SLURM_LOCALID" in environment else rank
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST") or "127.0.0.1"
        address, port, starter = environment.get("MASTER_ADDR") or first_host(nodes), _port(environment), "srun"
    else:
        return None
    if not 0 <= rank < size:
        raise UserError(f"{starter} says that this is process {rank} of {size}, counted from 0: start them anew.")
    return World(rank, size, local, address, port, starter) if size > 1 else None


def first_host(nodes: str) -> str:
    """The first host of a list as Slurm writes it: ``gpu[03-07,12],login1`` is ``gpu03``."""
    found = re.match(r"([^,\[]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "".join(part or "" for part in found.groups()) if found else nodes


def _port(environment: Mapping[str, str]) -> int:
    """A port that the processes of a step agree on, and those of another job on the same machine hardly share."""
    if "MASTER_PORT" in environment:
        return _number(environment, "MASTER_PORT")
    job = _number(environment, "SLURM_JOB_ID") if "SLURM_JOB_ID" in environment else 0
    step = environment.get("SLURM_STEP_ID", "0")
    return 15_000 + (101 * job + (int(step) if step.isdecimal() else 0)) % 15_000


def _number(environment: Mapping[str, str], name: str) -> int:
    value = environment[name]
    if not value.isdecimal():
        raise UserError(
            f"the environment has {name}={value}, which is no number: start the processes anew, or unset it."
        )
    return int(value)
