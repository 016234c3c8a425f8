"""``robustcli validate COMMAND``: composition, checks and loading of a command, without its run."""

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, open_dict, read_write

from robustcli.cli.commands import find
from robustcli.cli.job import engine_of
from robustcli.cli.launch import one_sentence, written_out
from robustcli.cli.resume import is_trusted
from robustcli.config import groups as config_groups
from robustcli.config.checks import check
from robustcli.config.compose import compose
from robustcli.config.overrides import key
from robustcli.runs.trackers import tracker_names
from robustcli.utils.errors import UserError, user_error_in_chain


def validate(name: str, argv: Sequence[str]) -> int:
    """Print one line that all is well and the command line in full; returns 0.

    Data is opened and models are built by the engine's own ``load``, so that a missing file or an attack that does not
    fit the model is an error here; nothing is attacked, trained or written but caches of data.

    Raises:
        UserError: the mistake.
    """
    command = find(name).name
    with one_sentence(command, argv):
        words = written_out(command, argv)
    with one_sentence(command, words):
        overrides = words[2:] if words[:1] == ["--config-dir"] else words
        if flags := [word for word in overrides if word.startswith("-")]:
            raise UserError(f"validate looks at one job and takes no {flags[0]}: leave it out, with one value a key.")
        config = compose(command, overrides, words, with_hydra=True)
    chosen = {group: config.hydra.runtime.choices.get(group) for group in config_groups.groups_of(command, words)}
    with as_job(config):
        try:
            check(config, trusted=is_trusted(argv))
            tracker_names(config.tracker)
            engine_of(command).load(config)
        except Exception as error:
            if mistake := user_error_in_chain(error):
                raise mistake from error
            raise
    shown = [f"{group}={choice}" for group, choice in chosen.items() if choice is not None]
    shown += words[: len(words) - len(overrides)]  # --config-dir
    shown += [word for word in overrides if key(word) not in chosen or word.startswith("~")]
    print(f"all is well, nothing was run: {shlex.join(['robustcli', command, *shown])}")
    return 0


@contextmanager
def as_job(config: DictConfig) -> Iterator[None]:
    """Context in which ``config`` is as in a job: Hydra's own node stands in ``HydraConfig`` and not in ``config``."""
    holder = HydraConfig.instance()
    before = holder.cfg
    holder.set_config(config)
    with read_write(config), open_dict(config):
        del config["hydra"]
    try:
        yield
    finally:
        holder.cfg = before
