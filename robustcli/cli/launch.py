"""Launch of a command: arguments to Hydra, errors to sentences, ends of jobs to exit codes."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from functools import partial

from robustcli.cli.signals import terminable
from robustcli.config import groups as config_groups
from robustcli.utils.errors import UserError, lacks_room
from robustcli.utils.stops import asked_to_stop, note_stop, stop_code

DONE, FAILED, MISTAKE = 0, 1, 2
STOPPED = {
    130: "Ctrl-C",
    143: "SIGTERM",
    129: "SIGHUP, a closed terminal",
    128 + signal.SIGUSR1: "SIGUSR1, the warning of a batch system",
}


def launch(command: str, argv: Sequence[str], *, trusted: bool | None = None) -> int:
    """Run ``command`` (for example ``train-mat``) with Hydra's ``argv`` (overrides and flags in any order).

    Args:
        trusted: ``argv`` may name code from outside of robustcli; None: as `is_trusted` says.

    Returns the exit code: 0 done; 1 a job failed; 2 the user's mistake, in one sentence; 130 Ctrl-C; 143 SIGTERM;
    129 SIGHUP; 138 SIGUSR1.
    """
    return guarded(lambda: _launch(command, argv, trusted))


def guarded(work: Callable[[], int]) -> int:
    """The exit code of ``work``, or that of what it raised; a user's mistake prints ``error: <sentence>`` only."""
    try:
        with terminable():
            return work()
    except BaseException as error:
        code = stop_code(error)
        if code is not None:
            with suppress(OSError):  # of a terminal that was closed
                print(f"stopped by {STOPPED.get(code, f'signal {code - 128}')}", file=sys.stderr, flush=True)
            return code
        if isinstance(error, UserError):
            print(f"error: {error}", file=sys.stderr)
            return MISTAKE
        if isinstance(error, SystemExit):
            return error.code if isinstance(error.code, int) else DONE if error.code is None else FAILED
        traceback.print_exc()
        return FAILED
    finally:
        note_stop(None)


def written_out(command: str, argv: Sequence[str]) -> list[str]:
    """``argv`` in Hydra's form: flags first, ``resume=DIR`` and short forms expanded, groups checked.

    Raises:
        UserError: a flag, a directory to resume or with groups, or a group that ``command`` cannot take, or groups that
            contradict.
    """
    from robustcli.cli.arguments import ordered
    from robustcli.cli.recorded import TRUST
    from robustcli.cli.resume import expand
    from robustcli.config.compose import keys_of
    from robustcli.config.errors import check_groups
    from robustcli.config.files import check_files
    from robustcli.config.named import with_models
    from robustcli.config.overrides import at_their_keys, in_folder, in_full, key, with_quotes
    from robustcli.config.precedence import refuse_overruled

    words = ordered([word for word in expand(ordered(argv)) if word != TRUST])
    check_files(words)
    experiments = config_groups.groups_of(command, words).get(config_groups.EXPERIMENT, [])
    words = [in_folder(word, experiments) if key(word) == config_groups.EXPERIMENT else word for word in words]
    words = with_models(words, config_groups.groups_of(command, words).get("model", []))
    check_groups(command, words)
    words = [with_quotes(word) for word in at_their_keys(in_full(words, partial(keys_of, command, words)))]
    refuse_overruled(command, words)
    return words


@contextmanager
def one_sentence(command: str, argv: Sequence[str]) -> Iterator[None]:
    """Context that turns errors of Hydra and YAML into a `UserError`; HYDRA_FULL_ERROR=1 keeps those of Hydra."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    from robustcli.config.errors import explain

    debug = os.environ.get("HYDRA_FULL_ERROR") == "1"
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        raise UserError(explain(command, argv, error)) from error
    except RecursionError as error:
        raise UserError(
            "a value on the command line or in a config file is nested more deeply than can be read."
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"a config file is not in UTF-8 ({error}): save it as UTF-8") from error
    except YAMLError as error:
        raise UserError("a config file is no YAML: " + " ".join(str(error).split())) from error


def _refuse_equal_runs(command: str, argv: Sequence[str]) -> None:
    """Check that torchrun or srun have not started a run several times that its processes would not share."""
    from robustcli.cli.arguments import READING, ordered
    from robustcli.cli.commands import find
    from robustcli.config.compose import keys_of
    from robustcli.utils.world import world_of

    world = world_of()
    if world is not None and find(command).engine != "train" and READING.isdisjoint(ordered(argv)):
        shared = f", with processes={world.size}" if "processes" in keys_of(command, []) else ""
        world.refuse(
            f"each of which would do the same run: start {command} {world.once}{shared}; runs that differ are jobs of "
            "a sweep (--multirun)."
        )


def _launch(command: str, argv: Sequence[str], trusted: bool | None) -> int:
    _refuse_equal_runs(command, argv)
    with one_sentence(command, argv):
        words = written_out(command, argv)
    # After the check of the words: a mistyped flag or group is answered before Hydra starts.
    import hydra

    from robustcli.cli.job import Job
    from robustcli.cli.resume import is_trusted, retries
    from robustcli.cli.sweep import counted
    from robustcli.config import schemas

    schemas.register()
    primary, folder = command.replace("-", "_"), str(config_groups.conf_directory())
    task = hydra.main(version_base="1.3", config_path=folder, config_name=primary)
    counting = counted(command, retry=retries(argv))
    with one_sentence(command, words), _as_process(f"robustcli {command}", words), counting as outcomes:
        try:
            task(Job(command, trusted=is_trusted(argv) if trusted is None else trusted))()
        except BrokenExecutor:
            if asked_to_stop() is not None:  # so were the workers
                raise
            print(
                f"error: a worker of the sweep was killed, as where memory runs out; go on with fewer jobs at a time: "
                f"robustcli {command} resume={outcomes.directory} hydra.launcher.n_jobs=1",
                file=sys.stderr,
            )
            return FAILED
        except OSError as error:  # of Hydra, which makes the directories: a job turns its own into an exit code
            if lacks_room(error):
                raise UserError("there is no room left where the run is to stand: make room there") from error
            if error.filename is None:  # a choice that is missing is an OSError to Hydra too
                raise
            raise UserError(
                f"the directory of the run cannot be made: {error.filename} ({error.strerror}); name another with "
                "hydra.run.dir, or hydra.sweep.dir of a sweep"
            ) from error
    return DONE if outcomes.close() else FAILED


@contextmanager
def _as_process(name: str, argv: list[str]) -> Iterator[None]:
    """Context in which ``sys.argv`` holds ``argv`` and Hydra raises instead of printing; all is restored.

    So is Hydra's own node, which a run leaves set: what is built afterwards in this process is of no job.
    """
    from hydra.core.hydra_config import HydraConfig

    holder = HydraConfig.instance()
    words, full, before = sys.argv, os.environ.get("HYDRA_FULL_ERROR"), holder.cfg
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = [name, *argv], "1"
    try:
        yield
    finally:
        sys.argv, holder.cfg = words, before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
