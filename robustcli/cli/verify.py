"""``robustcli verify DIR``: a finished run judged again from what it stored, without an attack."""

from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import OmegaConf

from robustcli.cli.commands import find
from robustcli.cli.job import engine_of
from robustcli.cli.launch import one_sentence
from robustcli.cli.recorded import read_entry, refuse_untrusted
from robustcli.cli.rerun import finished, inside, read_records, rebuild_arguments
from robustcli.cli.validate import as_job
from robustcli.config.checks import check, refuse_foreign
from robustcli.config.compose import compose
from robustcli.report.tables import Grid, print_grid
from robustcli.utils.errors import UserError, user_error_in_chain

if TYPE_CHECKING:
    from robustcli.engines.verify import Verification

JUDGED = ("attack", "evaluate", "purify")
_SHOWN = 10


def verify(directory: Path, *, trust: bool = False) -> int:
    """Print what holds of the run in ``directory`` and what does not; returns 0, or 1 where anything does not.

    Args:
        trust: load what the run names from outside of robustcli.

    Raises:
        UserError: no finished run of a command that judges, or one that stored no inputs or reaches for code that is
            not of robustcli without ``trust``.
    """
    from robustcli.engines.verify import verify as judge

    old = directory.absolute()
    manifest = finished(old)
    command = find(read_entry(manifest, "command", str, old)).name
    if command not in JUDGED:
        raise UserError(
            f"{old} is a run of {command}, which stores no adversarial inputs: verify takes runs of "
            f"{', '.join(JUDGED)}; `robustcli rerun` rebuilds any."
        )
    if not (old / "adversarial").is_dir():
        raise UserError(
            f"{old} stored no adversarial inputs: run it with evaluation.keep_inputs=true, or rebuild it by "
            "`robustcli rerun`."
        )
    records = read_records(old)
    if records is None:
        raise UserError(f"{old} has no records.parquet: it was removed, and nothing is left to verify.")
    argv = rebuild_arguments(old)
    if not trust:
        refuse_untrusted(old, argv)
    with inside(Path(read_entry(manifest, "working_directory", str, old))):
        overrides = argv[2:] if argv[:1] == ["--config-dir"] else argv
        with one_sentence(command, argv):
            config = compose(command, overrides, argv, with_hydra=True)
        with as_job(config):
            if not trust:
                refuse_foreign(OmegaConf.to_container(config))
            try:
                check(config, trusted=True)
                found = judge(old, manifest, records, engine_of(command).load(config))
            except Exception as error:
                if mistake := user_error_in_chain(error):
                    raise mistake from error
                raise
    _print(found)
    return 0 if found.holds else 1


def _print(found: "Verification") -> None:
    for title, columns, rows in (
        ("Files that are not as the run left them", ["file", "fault"], found.files),
        ("Data, weights and words that are others today", ["name", "recorded", "found"], found.inputs),
        ("Records that are not confirmed", ["record", "column", "recorded", "judged"], found.different),
    ):
        if rows:
            more = f" ({len(rows)}, the first {_SHOWN})" if len(rows) > _SHOWN else ""
            print_grid(Grid(f"{title}{more}", columns, [tuple(row) for row in rows[:_SHOWN]]))
    for sentence in found.broken:
        print(f"not judged: {sentence}")
    if not found.hashed:
        print("the manifest has no hashes of the files: the run is of an earlier version")
    rest = f"; {found.unjudged} have no stored inputs" if found.unjudged else ""
    verdict = "confirmed" if found.holds else "not confirmed"
    print(f"{verdict}: {found.confirmed} of {found.confirmed + len(found.different)} records judged again{rest}")
