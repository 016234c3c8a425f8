"""Pictures of a report, and other parts of it that are worth less than its numbers."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from robustcli.report.markdown import Picture
from robustcli.report.tables import Grid
from robustcli.runs.run import Run

T = TypeVar("T")

_LONGEST = 80  # letters of the name of a picture, whatever a user calls a model


class Album:
    """Optional parts of a report, each made on its own: one that fails costs neither a number nor another part.

    Attributes:
        pictures: those that were drawn, in their order.
        failures: a sentence for each part that could not be made.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self.pictures: list[Picture] = []
        self.failures: list[str] = []

    def draw(
        self, name: str, caption: str, picture: Callable[[Path], Grid | None], numbers: Grid | None = None
    ) -> None:
        """Add the PNG that ``picture`` writes to ``figures/<name>.png``, if it can.

        Args:
            picture: writes it, and returns the texts in it, if it has some that a page should hold as texts.
            numbers: those behind it.
        """

        def part() -> Picture:
            path = self._path(name)
            texts = picture(path)
            return Picture(caption, path, numbers or texts, "The numbers" if numbers else "The texts")

        if drawn := self.attempt(f"the picture {name}", part):
            self.pictures.append(drawn)

    def attempt(self, what: str, make: Callable[[], T]) -> T | None:
        """The result of ``make()``, or None where it raised, with a sentence among the failures and a traceback in the
        log of the run.
        """
        try:
            return make()
        except Exception as error:  # whatever a library makes of a user's text or memory: the numbers stand
            reason = (str(error).strip().splitlines() or [""])[0]
            self._run.log.info("%s failed", what, exc_info=True)
            self.failures.append(
                f"NOT MADE: {what}, because of an error ({type(error).__name__}: {reason}); the numbers are complete."
            )
            return None

    def _path(self, name: str) -> Path:
        """A path of its own: names of a user may be equal once they are fit for a file."""
        safe = "".join(c if c.isascii() and (c.isalnum() or c in "._+=-") else "_" for c in name)[:_LONGEST]
        taken = {picture.path.stem for picture in self.pictures}
        free = next(each for n in range(len(taken) + 1) if (each := f"{safe}_{n}" if n else safe) not in taken)
        return self._run.figure(f"{free}.png")
