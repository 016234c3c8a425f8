"""Content of the study: worlds, augmentations, and the arms that train with them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SEEDS = (0, 1, 2)
# At 4/255 the second world, of lower contrast, left every arm with one percent, which tells no arm from another.
EPS: Mapping[str, str] = {"first": "4/255", "second": "2/255"}
CLEAN_STEPS = 900  # of the clean models: the reference of the measures, and the start of the second world

# The first world was looked at while the study was made; nothing in it was chosen by the second.
WORLDS: Mapping[str, Sequence[str]] = {
    "first": (),
    "second": ("dataset.seed=1", "dataset.contrast=0.6", "dataset.synonym_frequency=0.01"),
}
FEW = ("dataset.train=500", "dataset.captions_per_image=1")  # as in experiment=mat_plus_scenes

AUGMENTATIONS: Mapping[str, Sequence[str]] = {
    "captions": ("augment=captions", "augment.number=5"),
    "paraphrase": ("augment=paraphrase",),
    "redraw": ("augment=redraw",),
    "misaligned .1": ("augment=paraphrase", "augment.misaligned=0.1"),
    "misaligned .25": ("augment=paraphrase", "augment.misaligned=0.25"),
    "misaligned .5": ("augment=paraphrase", "augment.misaligned=0.5"),
    "words .5": ("augment=paraphrase", "augment.shift.words=0.5"),
    "words 1": ("augment=paraphrase", "augment.shift.words=1"),
    "textures": ("augment=redraw", "augment.shift.textures=1"),
    "contrast": ("augment=redraw", "augment.shift.contrast=0.6"),
    "eda": ("augment=eda", "augment.number=5"),
    "randaugment": ("augment=randaugment", "augment.number=5"),
}


@dataclass(frozen=True)
class Arm:
    """A training: the augmentations that it mixes in, and how many of each an image has (None: all)."""

    augmentations: tuple[str, ...] = ()
    number: int | None = None


ARMS: Mapping[str, Arm] = {
    "none": Arm(),
    "captions 1": Arm(("captions",), 1),
    "captions 2": Arm(("captions",), 2),
    "captions 5": Arm(("captions",)),
    "both": Arm(("paraphrase", "redraw")),
    **{name: Arm((name,)) for name in AUGMENTATIONS if name != "captions"},
}
CURVES: Mapping[str, Sequence[str]] = {
    "own captions beside the first": ("none", "captions 1", "captions 2", "captions 5"),
    "share of wrong statements": ("paraphrase", "misaligned .1", "misaligned .25", "misaligned .5"),
    "share of rare words": ("paraphrase", "words .5", "words 1"),
}


def slug(name: str) -> str:
    """``name`` as the name of a folder."""
    return name.replace(" .", "-0.").replace(" ", "-")
