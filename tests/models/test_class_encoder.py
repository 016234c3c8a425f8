"""A dual encoder before classes: vectors of texts and of pictures, looked up by number."""

import pytest
import torch
from torch.nn import functional as F

from robustcli.data import Scenes
from robustcli.models import ClassEncoder, DualEncoder, ZeroShot
from robustcli.utils.numbered import as_pixels

CLASSES, TEMPLATES = ("circle", "square", "red"), ("a {} in the corner", "the small {}")


def texts_of(model: DualEncoder, templates: tuple[str, ...] = TEMPLATES) -> ZeroShot:
    return ZeroShot(model, CLASSES, templates=templates, origin="given")


def test_the_vector_of_a_class_is_the_mean_of_its_texts(small_model: DualEncoder) -> None:
    encoder = ClassEncoder(small_model, texts=texts_of(small_model))
    rows = []
    for name in CLASSES:
        units = small_model.encode_text(small_model.tokenize([each.replace("{}", name) for each in TEMPLATES]))
        mean = units.detach().double().mean(0)
        rows.append(mean / mean.norm())
    found = encoder.encode_image(as_pixels(torch.tensor([2, 0, 1, 2])))
    assert torch.allclose(found.double(), torch.stack(rows)[[2, 0, 1, 2]], atol=1e-6)
    assert not torch.allclose(found[0], found[1], atol=1e-3)


def test_the_vector_of_a_class_is_the_mean_of_its_pictures(small_model: DualEncoder, scenes: Scenes) -> None:
    pictures = [scenes.images(torch.arange(start, stop)) for start, stop in ((0, 1), (1, 4), (4, 6))]
    encoder = ClassEncoder(small_model, pictures=pictures)
    found = encoder.encode_image(as_pixels(torch.arange(3)))
    for vector, each in zip(found, pictures, strict=True):
        units = F.normalize(small_model.encode_image(each).detach().double(), dim=1)
        mean = units.sum(0)
        assert torch.allclose(vector.double(), mean / mean.norm(), atol=1e-6)
    told = encoder.notes(1, 1, ["red"])
    assert told == ["Classes are pictures: 6 of 3 classes, the mean of those of a class."]


def test_texts_are_encoded_as_by_the_dual_encoder_and_nothing_trains(small_model: DualEncoder) -> None:
    plain = small_model.eval().encode_text(small_model.tokenize(["a red circle"]))
    encoder = ClassEncoder(small_model, texts=texts_of(small_model))
    tokens = encoder.tokenize(["a red circle"])
    assert torch.equal(encoder.encode_text(tokens), plain)
    assert not any(weight.requires_grad for weight in encoder.parameters())
    vectors = encoder.token_embedding()(tokens).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(encoder.encode_text(tokens, vectors).sum(), vectors)
    assert gradient.any()
    told = "Zero-shot: 3 classes in 2 templates (given), such as 'a circle in the corner'."
    assert encoder.notes(1, 1, ["red"])[0] == told


def test_the_fingerprint_is_that_of_weights_and_texts(small_model: DualEncoder) -> None:
    one, same, other = (
        ClassEncoder(small_model, texts=texts_of(small_model, templates)).fingerprint()
        for templates in (TEMPLATES, TEMPLATES, TEMPLATES[:1])
    )
    assert one == same != other
    with pytest.raises(ValueError, match="texts of the classes, or their pictures"):
        ClassEncoder(small_model)
