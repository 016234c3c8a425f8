"""Trainings by several processes: those that the first one starts on this machine, or those of torchrun and srun.

The first process opens the run, validates and writes; the others follow its steps and leave nothing behind.
"""

import math
import multiprocessing
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from typing import Any

import torch
from omegaconf import DictConfig

from robustcli.engines.workers import Work, check_alive, spawnable, start_tracker, take_gpu, told
from robustcli.runs.run import Run
from robustcli.training.group import Group, connected, disconnect
from robustcli.training.trainer import Trainer
from robustcli.utils.errors import LostProcess, UserError
from robustcli.utils.world import World, world_of

dist: Any = torch.distributed  # whose stores it does not export to a type checker
_MEETING = timedelta(minutes=30)  # until the last process has loaded its part
_LOOK = 0.5  # seconds between looks for a process that was lost
_GRACE = 3.0  # seconds for a process to tell or to end by itself
_ENDING = threading.Lock()  # held by the thread that ends this process


def check_processes(config: DictConfig) -> None:
    """Check that the processes of a training can share its micro-batches, before any work; take the GPU of this one.

    Raises:
        UserError: they cannot, or ``trainer.devices`` is not their number.
    """
    world, asked, shared = world_of(), config.trainer.devices, config.trainer.accumulation
    if world is not None and asked not in (1, world.size):
        raise UserError(
            f"trainer.devices is {asked}, but {world.starter} has started {world.size} processes: leave it out there."
        )
    if shared % (count := asked if world is None else world.size):
        fitting = -(-shared // count) * count
        size = config.trainer.batch_size * shared // fitting
        # Not batches so small that no pair has a negative.
        alike = f", such as trainer.accumulation={fitting} trainer.batch_size={size}" if size > 1 else ""
        raise UserError(
            f"trainer.accumulation is {shared}, whose batches {count} processes cannot share alike: set it to a "
            f"multiple of {count}{alike}, or take {math.gcd(shared, count)} of them."
        )
    if world is not None:
        take_gpu(config, world.local_rank)


@contextmanager
def together(run: Run, config: DictConfig, trainer: Trainer) -> Iterator[None]:
    """Context in which the processes that ``config`` or the environment asks for train with ``trainer``, this being the
    first of them; they end with it.

    Raises:
        UserError: what another one met on loading, or one that is of another training.
        LostProcess: one ended before its work.
    """
    world, count = world_of(), config.trainer.devices
    if world is None and count == 1:
        yield
        return
    run.note(processes=count if world is None else world.size)
    meeting = _started(run, config, trainer) if world is None else met(world, trainer.model.device)
    with meeting as group:
        group.directory = str(run.directory)
        group.shared(lambda: group.directory.encode())
        trainer.group = group
        try:
            yield
        finally:
            trainer.group = Group()


def follow(trainer: Trainer, group: Group) -> None:
    """Train as the process beside the first one of ``group`` that this is; nothing where the run was done already.

    Raises:
        LostProcess: another one ended before its work.
    """
    group.directory = (group.shared(lambda: None) or b"").decode()
    if group.directory:
        trainer.group = group
        trainer.prepare()
        trainer.fit(lambda figures: None)


@contextmanager
def met(world: World, device: torch.device) -> Iterator[Group]:
    """Context of the group of the processes that torchrun or srun have started.

    Raises:
        UserError: they did not meet.
    """

    def meet() -> Any:
        if world.starter == "torchrun":  # whose own process may hold the place where they meet
            return next(dist.rendezvous("env://", world.rank, world.size, timeout=_MEETING))[0]
        return dist.TCPStore(world.address, world.port, world.size, world.rank == 0, _MEETING)

    try:
        group = connected(meet, world.rank, world.size, device)
    except RuntimeError as error:
        said = (str(error).strip().splitlines() or [""])[0]
        raise UserError(
            f"process {world.rank + 1} of {world.size} did not meet the others at {world.address}:{world.port} "
            f"({said}): start them all, and give another MASTER_PORT if that one is taken."
        ) from error
    try:
        yield group
    finally:
        disconnect()


@contextmanager
def _started(run: Run, config: DictConfig, trainer: Trainer) -> Iterator[Group]:
    """Context of the group of this process and those that it starts, which end with it."""
    start_tracker()
    context, count = multiprocessing.get_context("spawn"), config.trainer.devices
    going_on = f"go on from the last saved state with resume={run.directory}"
    # On the loopback alone, and on a port that nobody can take in between.
    with socket.create_server(("127.0.0.1", 0)) as server, _on_loopback():
        port = server.getsockname()[1]
        store = dist.TCPStore(
            "127.0.0.1", port, is_master=True, wait_for_workers=False, master_listen_fd=os.dup(server.fileno())
        )
        work = Work.of(run, config, "train")
        # Pipes, not a queue, whose semaphores would be left where this process is killed.
        pipes = [context.Pipe(duplex=False) for _ in range(1, count)]
        answers = [receiving for receiving, _ in pipes]
        processes = [
            context.Process(target=_work, args=(work, port, number, count, sending), daemon=True)
            for number, (_, sending) in enumerate(pipes, 1)
        ]

        def look() -> None:
            _received(answers, wait=0.0)
            check_alive(processes, count, going_on)

        with spawnable():
            for process in processes:
                process.start()
        for _, sending in pipes:
            sending.close()
        try:
            ready = 0
            while ready < count - 1:
                ready += _received(answers, wait=_LOOK)
                check_alive(processes, count, going_on)
            yield connected(lambda: store, 0, count, trainer.model.device, look)
            _await(processes)
        except LostProcess:
            _received(answers, wait=_GRACE)  # why it ended, if it could say so
            _await_one(processes)
            check_alive(processes, count, going_on)
            raise
        finally:
            for process in processes:  # before the connection ends, about which they would complain
                process.kill()
            for process in processes:
                process.join()
            disconnect()


def _work(work: Work, port: int, number: int, count: int, answer: Connection) -> None:
    """The life of a process beside the first one."""
    try:
        engine = work.begin(number, lambda: _end_without_first(number, count, work))
        loaded = engine.load(work.config)
        answer.send(None)  # it is ready
        with _on_loopback():
            group = connected(
                lambda: dist.TCPStore("127.0.0.1", port, is_master=False, timeout=_MEETING),
                number,
                count,
                loaded.trainer.model.device,
            )
        follow(loaded.trainer, group)
        disconnect()
    except LostProcess as error:
        end = time.monotonic() + _GRACE
        # A first process that lives tells what happened, and ends this one; of one that dies the connection may end
        # before its death is known.
        while (alive := _first_is_alive()) and time.monotonic() < end:
            time.sleep(0.05)
        _end("" if alive else str(error))
    except Exception as error:
        with suppress(OSError):  # the first one may be gone
            answer.send(told(error))
        sys.exit(1)


def _first_is_alive() -> bool:
    parent = multiprocessing.parent_process()
    with suppress(TimeoutError):
        return parent is not None and parent.is_alive()
    return False


def _end_without_first(number: int, count: int, work: Work) -> None:
    time.sleep(_GRACE)  # the connection tells the main thread too, which has ended this process by then
    _end(f"process {number + 1} of {count} has lost the first one: go on with resume={work.directory}")


def _end(sentence: str) -> None:
    """End this process, with the sentence of the first thread that comes here."""
    _ENDING.acquire()
    if sentence:
        with suppress(OSError):
            os.write(2, f"error: {sentence}\n".encode())
    os._exit(1)


def _received(answers: list[Connection], *, wait: float) -> int:
    """Number of processes that have said within ``wait`` seconds that they are ready; raises what another has met."""
    ready = 0
    for answer in connection.wait(answers, wait):
        assert isinstance(answer, Connection)
        try:
            found = answer.recv()
        except EOFError:  # it has ended
            answers.remove(answer)
            continue
        if isinstance(found, Exception):
            raise found
        ready += 1
    return ready


def _await(processes: Sequence[SpawnProcess]) -> None:
    end = time.monotonic() + _GRACE
    for process in processes:
        process.join(max(0.0, end - time.monotonic()))


def _await_one(processes: Sequence[SpawnProcess]) -> None:
    """Wait a moment for a process to be known as ended, whose connection may end before it."""
    end = time.monotonic() + _GRACE
    while time.monotonic() < end and not any(process.exitcode for process in processes):
        time.sleep(0.05)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Context in which gloo's connections are those of this machine to itself, unless the environment names others."""
    names = {name for _, name in socket.if_nameindex()} & {"lo", "lo0"}
    key = "GLOO_SOCKET_IFNAME"
    if key in os.environ or not names:
        yield
        return
    os.environ[key] = min(names)
    try:
        yield
    finally:
        os.environ.pop(key, None)
