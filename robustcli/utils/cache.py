"""Where things are kept that can be made again: rendered sets, decoded images, word candidates."""

import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """A folder under ``$ROBUSTCLI_CACHE`` (``$XDG_CACHE_HOME/robustcli``, ``~/.cache/robustcli``), made if absent."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    root = Path(os.environ.get("ROBUSTCLI_CACHE") or Path(home) / "robustcli")
    directory = root.joinpath(*parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
