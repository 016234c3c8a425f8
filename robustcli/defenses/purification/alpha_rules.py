"""How alphas are found: the choices of ``alphas=...`` of ``learn-alphas``."""

from dataclasses import dataclass

from robustcli.attacks import EOT, PGD, ClassifierAttack
from robustcli.utils.numbers import at_least, one_of


@dataclass(frozen=True, kw_only=True)
class AlphaRule:
    """An attacker who knows of the purifier and of its alphas: PGD through it, gradients averaged over answers (EOT).

    Args:
        steps: of PGD, 1 or more.
        draws: answers of a gradient, each the mean over the draws of the purifier, 1 or more.

    Raises:
        UserError: a number below 1.
    """

    steps: int = 5
    draws: int = 2

    def __post_init__(self) -> None:
        at_least("steps", self.steps, 1, node="alphas")
        at_least("draws", self.draws, 1, node="alphas")

    @property
    def adaptive(self) -> bool:
        """True where what comes out is judged by that attacker."""
        return True

    def attack(self, seed: int) -> ClassifierAttack:
        """The search; a figure of its own is no claim of robustness, so few steps serve to tell alphas apart."""
        return EOT(PGD(steps=self.steps, early_stop=False, seed=seed), draws=self.draws)


@dataclass(frozen=True, kw_only=True)
class SearchedAlphas(AlphaRule):
    """A search over [0,1]^L for the highest accuracy.

    Args:
        against: ``static``, images that were made once, against the reconstruction, as in the paper; or ``adaptive``,
            images that are made for each trial, against the purifier with the alphas tried.
        steps, draws: see `AlphaRule`; of ``adaptive`` alone.

    Raises:
        UserError: an unknown ``against``, or see `AlphaRule`.
    """

    against: str = "static"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("against", self.against, ("static", "adaptive"), node="alphas")

    @property
    def adaptive(self) -> bool:
        return self.against == "adaptive"


@dataclass(frozen=True, kw_only=True)
class InformativeAlphas(AlphaRule):
    """No search: what tells the class is kept, the rest is drawn anew, see `alpha_information`.

    Args:
        images: on which the probes are trained and tested in turn; fewer where the split has fewer.
        folds: parts of them, each of which is tested by probes that were trained on the others; 2 or more.
        components: of a latent, the most that a probe sees: its first principal components.
        given: ``coarser``, what a latent tells beyond the coarser ones, which is what drawing it anew loses; or
            ``nothing``, what it tells by itself.
        steps, draws: see `AlphaRule`; of the attack that judges what comes out.

    Raises:
        UserError: a number out of range.
    """

    images: int = 1000
    folds: int = 5
    components: int = 32
    given: str = "coarser"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("images", self.images, 10, node="alphas")
        at_least("folds", self.folds, 2, node="alphas")
        at_least("components", self.components, 1, node="alphas")
        one_of("given", self.given, ("coarser", "nothing"), node="alphas")
