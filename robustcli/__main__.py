"""``python -m robustcli``, and the console script."""

import signal


def main() -> None:
    """Entry point of the command line."""
    # Until the work begins, whose handlers end it in order, Ctrl-C ends the process as SIGTERM does: an import would
    # answer it with a traceback, and Typer with "Aborted!" and exit code 1.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from robustcli.cli.main import main as run

    run()


if __name__ == "__main__":
    main()
