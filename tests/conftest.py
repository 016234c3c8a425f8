"""What several rooms' tests share: a small set of scenes, a small model, an attack."""

import logging
from collections.abc import Iterator

import pytest

from robustcli.attacks import PGD, SequentialAttack, SynonymTable, WordSubstitution
from robustcli.data import Scenes
from robustcli.data.scenes import synonym_table, vocabulary
from robustcli.models import DualEncoder, tiny

SIZES = {"train": 48, "val": 24, "test": 24}
SMALL_MODEL = {
    "width": 32,
    "layers": 2,
    "text_width": 32,
    "text_layers": 1,
    "embed_dim": 32,
    "heads": 2,
    "text_heads": 2,
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the cache of the person who runs it; the tests share one, so that scenes are rendered once."""
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What Hydra did to the root logger does not outlive its test: no handler, whose captured stream is closed by then,
    and no level, at which the next would show its config.
    """
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    yield
    root.setLevel(level)
    for handler in [handler for handler in root.handlers if handler not in before]:
        root.removeHandler(handler)


@pytest.fixture
def scenes() -> Scenes:
    """Two batches of training pairs."""
    return Scenes(split="train", synonym_frequency=0.05, **SIZES)


@pytest.fixture
def small_model() -> DualEncoder:
    """A `tiny` of 30,000 weights, untrained."""
    return tiny(vocabulary(), seed=1, **SMALL_MODEL)


@pytest.fixture
def mat_attack() -> SequentialAttack:
    """The inner attack of MAT as the trainer uses it."""
    candidates = SynonymTable({word: list(others) for word, others in synonym_table().items()})
    text = WordSubstitution(search="hotflip", top_k=0, candidates=candidates)
    return SequentialAttack(image=PGD(steps=1, loss="infonce"), text=text)
