"""The server of `robustcli view`, on 127.0.0.1 alone."""

import importlib.util
import socket
import webbrowser
from pathlib import Path

from robustcli.utils.errors import UserError, reason_of

HOST = "127.0.0.1"


def serve(directory: Path, *, port: int, show: bool = False) -> None:
    """Serve the runs below ``directory`` until Ctrl-C.

    Args:
        port: 0: any that is free.
        show: open the page in a browser.

    Raises:
        UserError: no such directory, a port that is taken, or the extra ``view`` is not installed.
    """
    if not directory.is_dir():
        raise UserError(f"{directory} is no directory: name the one with the runs, such as outputs.")
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise UserError(f"robustcli view needs {' and '.join(missing)}: pip install 'robustcli[view]'.")
    import uvicorn

    from robustcli.view.app import create

    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise UserError(
                f"port {port} of {HOST} cannot be used ({reason_of(error)}): choose another with --port."
            ) from error
        address = f"http://{HOST}:{listening.getsockname()[1]}/"
        print(f"runs in {directory}: {address} (Ctrl-C ends it)", flush=True)
        if show:
            webbrowser.open(address)
        config = uvicorn.Config(create(directory), log_level="warning", server_header=False)
        uvicorn.Server(config).run(sockets=[listening])
