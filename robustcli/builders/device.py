"""Choice of the torch device and the number of CPU threads."""

import torch

from robustcli.utils.errors import UserError


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
