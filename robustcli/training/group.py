"""Processes that train together: what they send each other, and how they learn that one of them was lost.

Shapes: K micro-batches of a step, R those of one process, V values.
"""

import hashlib
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from robustcli.training.pairwise import PairwiseSum, blocks
from robustcli.utils.errors import LostProcess, UserError

# A process that is lost is noticed otherwise: others wait as long as the first one validates.
PATIENCE = timedelta(days=7)
_PAUSE = 0.0002  # seconds between looks for an answer; a signal's handler runs in between
_LOOK = 0.5  # seconds between looks for a process that was lost
_PIECE = 1 << 28  # bytes of a state that are sent at once


class Group:
    """The processes of a training; made without arguments it is one process, which sends nothing.

    Args:
        control: gloo's group of all processes, for what is on the CPU.
        device: of the tensors that are summed.
        look: called now and then while others are waited for; raises `LostProcess` where one is known to be lost.

    Attributes:
        rank: number of this process, from 0; 0 validates and writes.
        size: number of processes.
        directory: of the run, for messages; empty where it is not known.
    """

    def __init__(
        self,
        control: Any = None,
        device: torch.device | None = None,
        look: Callable[[], None] = lambda: None,
    ) -> None:
        self.rank = 0 if control is None else dist.get_rank(control)
        self.size = 1 if control is None else dist.get_world_size(control)
        self.directory = ""
        self._control, self._look = control, look
        self._tensors, self._device = control, torch.device("cpu")
        if control is not None and device is not None and self._own_gpus(device):
            torch.cuda.set_device(device)
            self._device = device
            self._tensors = dist.new_group(backend="nccl", timeout=PATIENCE)

    def run(self, count: int, rank: int | None = None) -> range:
        """The micro-batches of a step that a process computes, this one or ``rank``: K/size neighbours.

        Args:
            count: K, a multiple of the size.
        """
        share = count // self.size
        first = share * (self.rank if rank is None else rank)
        return range(first, first + share)

    def gathered(self, values: Tensor) -> Tensor:
        """(R,...) of each process -> (K,...) in the order of the micro-batches, the same in all; on the CPU."""
        values = values.detach().cpu()
        if self.size == 1:
            return values
        received = [torch.empty_like(values) for _ in range(self.size)]
        with self._lost():
            self._wait(dist.all_gather(received, values.contiguous(), group=self._control, async_op=True))
        return torch.cat(received)

    def total(self, local: PairwiseSum, count: int) -> Tensor:
        """The sum of ``count`` vectors (V,), of which each process has added those of its `run`; equal bits in all, for
        any number of processes.

        Each process sums a slice of V over the nodes of all, and the slices are sent round: twice the bytes of a vector
        for each process, as in a ring, whatever their number.
        """
        if self.size == 1:
            total: Tensor = local.total()
            return total
        first = local.nodes[0][2]
        length, device, slice_ = first.numel(), first.device, -(-first.numel() // self.size)
        ends = [min(length, slice_ * (rank + 1)) for rank in range(self.size)]
        own = nn.functional.pad(self.share(local, count, ends), (0, slice_))[:slice_].to(self._device)
        slices = [torch.empty_like(own) for _ in range(self.size)]
        with self._lost():
            self._wait(dist.all_gather(slices, own, group=self._tensors, async_op=True))
        return torch.cat(slices)[:length].to(device)

    def share(self, local: PairwiseSum, count: int, ends: Sequence[int]) -> Tensor:
        """The slice of this process of the sum of ``count`` vectors (V,), see `total`; ``local`` is used up.

        Args:
            ends: where the slice of each process ends, that of the first one begins at 0; what is behind the last is
                left out.
        """
        values = [value for _, _, value in local.nodes]
        local.nodes.clear()
        device, begins = values[0].device, [0, *ends[:-1]]
        lengths = [end - begin for begin, end in zip(begins, ends, strict=True)]
        sent = torch.cat([value[begin:end] for begin, end in zip(begins, ends, strict=True) for value in values]).to(
            self._device
        )
        splits = [len(values) * length for length in lengths]
        del values  # as large as what is sent
        own, held = lengths[self.rank], [list(blocks(self.run(count, rank))) for rank in range(self.size)]
        received = sent.new_empty(sum(map(len, held)), own)
        with self._lost():
            self._wait(
                dist.all_to_all_single(
                    received.view(-1),
                    sent,
                    output_split_sizes=[len(each) * own for each in held],
                    input_split_sizes=splits,
                    group=self._tensors,
                    async_op=True,
                )
            )
        tree = PairwiseSum()
        for (first, size), row in zip((node for each in held for node in each), received, strict=True):
            tree.add(row, first, size)
        total: Tensor = tree.total()
        return total.to(device)

    def sent(self, values: Tensor, owner: int) -> Tensor:
        """The values (V,) of process ``owner`` in all of them; those of the others are written over."""
        if self.size == 1:
            return values
        there = values.contiguous().to(self._device)
        with self._lost():
            self._wait(dist.broadcast(there, group_src=owner, group=self._tensors, async_op=True))
        return there.to(values.device)

    def collected(self, content: bytes) -> list[bytes]:
        """The ``content`` of each process, in their order, in the first one; nothing in the others."""
        if self.size == 1:
            return [content]
        lengths = self.gathered(torch.tensor([len(content)])).tolist()
        own = torch.frombuffer(bytearray(content), dtype=torch.uint8) if content else torch.empty(0, dtype=torch.uint8)
        pieces: list[list[Tensor]] = []
        for first in range(0, max(lengths), _PIECE):
            size = min(_PIECE, max(lengths) - first)
            piece = own[first : first + size]
            piece = nn.functional.pad(piece, (0, size - len(piece)))
            received = [torch.empty_like(piece) for _ in lengths] if self.rank == 0 else None
            with self._lost():
                self._wait(dist.gather(piece, received, group_dst=0, group=self._control, async_op=True))
            pieces.append(received or [])
        if self.rank:
            return []
        return [
            torch.cat([piece[rank] for piece in pieces])[:length].numpy().tobytes() if length else b""
            for rank, length in enumerate(lengths)
        ]

    def shared(self, content: Callable[[], bytes | None]) -> bytes | None:
        """What ``content`` gives in the first process, in all of them."""
        if self.size == 1:
            return content()
        known = content() if self.rank == 0 else None
        length = torch.tensor([-1 if known is None else len(known)])
        with self._lost():
            self._wait(dist.broadcast(length, 0, group=self._control, async_op=True))
            if (count := int(length)) < 0:
                return None
            data = torch.empty(count, dtype=torch.uint8)
            if known:
                data = torch.frombuffer(bytearray(known), dtype=torch.uint8)
            for piece in torch.split(data, _PIECE):
                self._wait(dist.broadcast(piece, 0, group=self._control, async_op=True))
        return data.numpy().tobytes()

    def check_equal(self, content: Sequence[object], otherwise: str) -> None:
        """Refuse processes that differ in ``content``, whose parts have a `repr` that tells.

        Args:
            otherwise: the sentence where they do, after the numbers of two of them.

        Raises:
            UserError: two differ.
        """
        if self.size == 1:
            return
        digest = hashlib.sha256(repr(list(content)).encode()).digest()
        found = self.gathered(torch.frombuffer(bytearray(digest), dtype=torch.uint8).unsqueeze(0))
        for other in range(1, self.size):
            if not torch.equal(found[other], found[0]):
                raise UserError(f"processes 1 and {other + 1} of {self.size} {otherwise}")

    def _own_gpus(self, device: torch.device) -> bool:
        """True where each process has a GPU of its own, which NCCL needs."""
        digest = bytes(32)
        if device.type == "cuda":
            name = f"{socket.gethostname()} {torch.cuda.get_device_properties(device).uuid}"
            digest = hashlib.sha256(name.encode()).digest()
        found = self.gathered(torch.frombuffer(bytearray(digest), dtype=torch.uint8).unsqueeze(0))
        return bool(found.any(1).all()) and len(torch.unique(found, dim=0)) == self.size

    def _wait(self, work: Any) -> None:
        looked = time.monotonic()
        while not work.is_completed():  # not `wait`, in which a signal would wait too
            time.sleep(_PAUSE)
            if time.monotonic() - looked > _LOOK:
                self._look()
                looked = time.monotonic()
        work.wait()

    @contextmanager
    def _lost(self) -> Iterator[None]:
        """Context in which the end of a connection is told in a sentence."""
        try:
            yield
        except RuntimeError as error:
            if isinstance(error, LostProcess):
                raise
            self._look()  # which may know which one it was
            told = re.sub(r"^\[.*?\] ", "", str(error).strip()).partition(". ")[0]  # without gloo's line and advice
            where = f"resume={self.directory}" if self.directory else "resume=DIR"
            raise LostProcess(
                f"process {self.rank + 1} of {self.size} has lost another one of the training ({told}): go on from the "
                f"last saved state with {where}, with any number of processes"
            ) from error


def connected(
    meet: Callable[[], Any], rank: int, size: int, device: torch.device, look: Callable[[], None] = lambda: None
) -> Group:
    """The group of ``size`` processes, of which this is ``rank``; `disconnect` ends it.

    Args:
        meet: gives the store where they meet; it may wait for the others.
        device, look: see `Group`.

    Raises:
        RuntimeError: they do not meet.
    """
    failed: list[Exception] = []

    def connect() -> None:
        try:
            dist.init_process_group("gloo", store=meet(), rank=rank, world_size=size, timeout=PATIENCE)
        except Exception as error:
            failed.append(error)

    # In a thread: in the main one a signal would wait for the last process, and so would the end of one that is lost.
    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(_LOOK)
        look()
    if failed:
        raise failed[0]
    return Group(dist.group.WORLD, device, look)


def disconnect() -> None:
    """End the group of `connected`, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()
