"""Choice of the torch device and the number of CPU threads."""

from typing import Any, TypeVar

import torch

from robustcli.utils.errors import UserError, lacks_memory

T = TypeVar("T")


def choose_device(name: str, threads: int) -> torch.device:
    """The device called ``name`` (``auto``: a GPU if there is one), with ``threads`` CPU threads.

    Threads are never taken by default: two busy processes with two threads each are slower than with one.

    Raises:
        UserError: a device that torch does not know or that is absent.
    """
    torch.set_num_threads(threads)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        float(torch.ones(1, device=device))  # a device such as meta has tensors without content
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UserError(
            f"device {name!r} is not to be had here ({str(error).splitlines()[0]}): use cpu or auto."
        ) from error
    return device


def on_device(made: T, device: torch.device, name: str) -> T:
    """``made``, a network, its wrapper or a cleaner, moved to ``device``.

    Args:
        name: of its config node, for the message.

    Raises:
        UserError: the device has no memory left for it.
    """
    movable: Any = made
    try:
        moved: T = movable.to(device)
    except (RuntimeError, MemoryError) as error:
        if not lacks_memory(error):
            raise
        raise UserError(
            f"{name} does not fit into the free memory of {device}: choose a smaller one, another device such as "
            "device=cpu, or end what else takes the memory."
        ) from error
    return moved
