"""Cache folder for reproducible intermediates: rendered sets, decoded images, word candidates."""

import os
from pathlib import Path

from platformdirs import user_cache_path

from robustcli.utils.errors import UserError


def cache_directory(*parts: str) -> Path:
    """A folder under ``$ROBUSTCLI_CACHE``, or else under the platform's cache (``~/.cache/robustcli``), made if absent.

    Raises:
        UserError: it cannot be made.
    """
    root = os.environ.get("ROBUSTCLI_CACHE") or user_cache_path("robustcli", appauthor=False)
    directory = Path(root).joinpath(*parts)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"the cache {directory} cannot be made ({error.strerror}): set the environment variable ROBUSTCLI_CACHE to "
            "a folder that can be written to"
        ) from error
    return directory
