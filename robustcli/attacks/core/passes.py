"""Passes of a search, known before it runs from its settings alone: what an estimate of its cost is made of."""

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What a search is to be run on, as far as its number of passes depends on it.

    Args:
        classes: of a classifier.
        captions: of an image, at most; 0 of a classifier. Where images have captions no search of images stops early by
            itself.
        norm: of the threat model.
        randomised: two passes over the same image differ: nothing stops early, and a success may be confirmed.
    """

    classes: int = 2
    captions: int = 0
    norm: str = "linf"
    randomised: bool = False

    @property
    def stops_early(self) -> bool:
        """True where a single success ends the search of an image."""
        return not self.captions and not self.randomised


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Passes of a search through the model, for one image; sums and multiples are those of searches in a row.

    Args:
        forward, backward: of the image.
        searches: of each of its captions, by the attack's search of texts, whose passes depend on the caption.
        at_most: the search may end before, and then costs less.
    """

    forward: int = 0
    backward: int = 0
    searches: int = 0
    at_most: bool = False

    def __add__(self, other: "Passes") -> "Passes":
        return Passes(
            forward=self.forward + other.forward,
            backward=self.backward + other.backward,
            searches=self.searches + other.searches,
            at_most=self.at_most or other.at_most,
        )

    def __mul__(self, times: int) -> "Passes":
        return replace(
            self, forward=times * self.forward, backward=times * self.backward, searches=times * self.searches
        )

    def bounded(self, at_most: bool = True) -> "Passes":
        """The same, as a bound where ``at_most``."""
        return replace(self, at_most=self.at_most or at_most)


def both(count: int) -> Passes:
    """``count`` forward passes, each with its backward pass."""
    return Passes(forward=count, backward=count)


def forward(count: int) -> Passes:
    """``count`` forward passes alone."""
    return Passes(forward=count)
