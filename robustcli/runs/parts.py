"""Parts of the results of a run, stored as they are computed, so that no process computes one twice."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from robustcli.utils import files

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def records_part(
    directory: Path,
    name: str,
    compute: "Callable[[], pd.DataFrame]",
    *,
    keep: "Callable[[pd.DataFrame], bool] | None" = None,
) -> "pd.DataFrame":
    """The table of ``compute()``, stored under ``name`` in the run ``directory`` and not computed again where it is
    there, unless ``keep`` refuses it.

    It is read back from its file even when just computed: a resumed run then gets the same dtypes and bits.
    """
    import pandas as pd

    path = part_path(directory, name)
    if path.exists():
        log.info("part %s was computed before, kept", name)
    else:
        part = compute()
        if keep is not None and not keep(part):
            return part
        with files.atomic(path) as temporary:
            part.to_parquet(temporary, index=False)
    return pd.read_parquet(path)


def part_path(directory: Path, name: str) -> Path:
    """File of the part ``name`` of the run in ``directory``."""
    return directory / "parts" / f"{quote(name, safe=' ')}.parquet"
