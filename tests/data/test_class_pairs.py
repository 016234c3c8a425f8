"""A set of classes as pairs of images and texts of their classes."""

import pytest
import torch

from robustcli.data import ClassPairs, ClassTexts, Digits, SceneClasses, class_texts
from robustcli.data.classes import ImageClassData
from robustcli.data.sampling import PairSampler
from robustcli.utils.errors import UserError


class Picked(ImageClassData):
    """Rows of another set."""

    def __init__(self, data: ImageClassData, rows: list[int]) -> None:
        self.name, self.split, self.classes, self.fingerprint = data.name, data.split, data.classes, data.fingerprint
        self.data, self.rows, self.labels = data, torch.tensor(rows), data.labels[rows]
        self.image_ids = [data.image_ids[row] for row in rows]

    def images(self, indices: torch.Tensor) -> torch.Tensor:
        return self.data.images(self.rows[indices])


@pytest.fixture(scope="module")
def colours() -> SceneClasses:
    return SceneClasses("colour", split="test", train=8, val=8, test=60)


def test_a_text_is_true_of_the_images_of_its_class_and_of_no_other(colours: SceneClasses) -> None:
    pairs = ClassPairs(colours, class_texts(colours, ["something {}", "it is {}"]))
    relation = pairs.relevance(torch.arange(len(pairs)), torch.arange(len(pairs.captions)))
    for row, label in enumerate(colours.labels.tolist()):
        name = colours.classes[label]
        true = [pairs.captions[column] for column in torch.nonzero(relation[row]).flatten().tolist()]
        assert true == [f"something {name}", f"it is {name}"]
        assert [pairs.captions[column] for column in pairs.captions_of()[row].tolist()] == true
    assert all(relation[pairs.owner[column], column] for column in range(len(pairs.captions)))


def test_batches_hold_texts_of_the_own_class_and_know_the_others_that_are_true(colours: SceneClasses) -> None:
    pairs = ClassPairs(colours, class_texts(colours, ["something {}", "it is {}"]))
    batch = PairSampler(pairs, batch_size=30, seed=0)(0)
    labels = colours.labels[batch.image_ids]
    assert torch.equal(batch.matches, labels[:, None] == labels[None, :])
    assert [text.split()[-1] for text in batch.captions] == [colours.classes[label] for label in labels.tolist()]
    assert {text.split()[0] for text in batch.captions} == {"something", "it"}, "every template is drawn"


def test_a_class_without_an_image_gives_no_caption(colours: SceneClasses) -> None:
    some = Picked(colours, [row for row, label in enumerate(colours.labels.tolist()) if label in (1, 4)])
    pairs = ClassPairs(some, ClassTexts(colours.classes, ("a {}",), "given"))
    assert pairs.captions == (f"a {colours.classes[1]}", f"a {colours.classes[4]}")
    assert pairs.owner.tolist() == [some.labels.tolist().index(1), some.labels.tolist().index(4)]


def test_classes_of_one_name_are_one(colours: SceneClasses) -> None:
    names = ("missile", "missile", *colours.classes[2:])
    pairs = ClassPairs(colours, ClassTexts(names, ("a {}",), "given", published=True))
    assert len(pairs.captions) == len(set(pairs.captions)) == 5
    either = (colours.labels <= 1).tolist()
    column = pairs.captions.index("a missile")
    assert pairs.relevance(torch.arange(len(pairs)), torch.tensor([column]))[:, 0].tolist() == either


def test_images_of_one_channel_are_those_of_three(colours: SceneClasses) -> None:
    digits = Digits(split="test")
    pairs = ClassPairs(digits, class_texts(digits))
    images = pairs.images(torch.arange(3))
    assert images.shape[1] == 3 and torch.equal(images[:, 2:], digits.images(torch.arange(3)))
    assert pairs.fingerprint != ClassPairs(digits, class_texts(digits, "tecoa")).fingerprint, "the texts are content"


def test_a_learnt_prompt_is_no_text(colours: SceneClasses) -> None:
    with pytest.raises(UserError, match="templates=simple"):
        ClassPairs(colours, class_texts(colours, "prompt.safetensors"))
