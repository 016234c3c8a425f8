"""A dual encoder as a classifier: the logits of the field, class weights from the cache, a frozen text tower."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip as library
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.attacks import APGD, EOT, AutoAttack, ThreatModel
from robustcli.models import DualEncoder, ZeroShot, load_dual, save_weights
from robustcli.models.weights import load_weights
from robustcli.utils.cache import cache_root
from robustcli.utils.errors import UserError

CLASSES = ("circle", "square", "red", "blue")
TEMPLATES = ("a {} in the corner", "the small {}", "a large {}")
Build = Callable[..., DualEncoder]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROBUSTCLI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def zero_shot(model: DualEncoder) -> ZeroShot:
    return ZeroShot(model, CLASSES, templates=TEMPLATES)


def class_weights(model: DualEncoder) -> Tensor:
    """The formula, plainly."""
    rows = []
    for name in CLASSES:
        units = model.encode_text(model.tokenize([each.replace("{}", name) for each in TEMPLATES]))
        rows.append(F.normalize(units.mean(0), dim=0))
    return torch.stack(rows).detach()


def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of texts of the passes of text towers from here on."""
    counts: list[int] = []
    whole = DualEncoder.encode_text

    def counted(self: DualEncoder, tokens: Tensor, *arguments: Any, **settings: Any) -> Tensor:
        counts.append(len(tokens))
        return whole(self, tokens, *arguments, **settings)

    monkeypatch.setattr(DualEncoder, "encode_text", counted)
    return counts


def test_logits_are_scaled_cosines_with_the_class_weights(zero_shot: ZeroShot, images: Tensor) -> None:
    model = zero_shot.dual
    weights = class_weights(model.eval())
    torch.testing.assert_close(zero_shot.class_features, weights, atol=1e-6, rtol=0)
    assert not zero_shot.class_features.requires_grad
    found = model.logit_scale * model.encode_image(images) @ weights.T
    torch.testing.assert_close(zero_shot(images), found, atol=1e-5, rtol=0)
    torch.testing.assert_close(zero_shot.logits_from(model.encode_image(images)), found, atol=1e-5, rtol=0)
    assert zero_shot.texts[1] == ("a square in the corner", "the small square", "a large square")


@pytest.mark.parametrize("kind", ["clip", "custom_text"])
def test_class_weights_and_logits_are_those_of_open_clip(build: Build, kind: str, images: Tensor) -> None:
    model = build(kind).eval()
    templates = [lambda name, each=each: each.replace("{}", name) for each in TEMPLATES]
    theirs = library.build_zero_shot_classifier(model.network, model.tokenizer, CLASSES, templates)
    ours = ZeroShot(model, CLASSES, templates=TEMPLATES)
    torch.testing.assert_close(ours.class_features, theirs.T, atol=1e-6, rtol=0)
    normalised = (images - model.mean) / model.std
    logits = model.logit_scale * model.network.encode_image(normalised, normalize=True) @ theirs  # type: ignore[operator]
    torch.testing.assert_close(ours(images), logits, atol=1e-5, rtol=0)


def test_accuracy_is_that_of_clip_benchmark_and_of_a_plain_loop(build: Build) -> None:
    theirs = pytest.importorskip(
        "clip_benchmark.metrics.zeroshot_classification", reason="clip-benchmark (the extra zero-shot) is not installed"
    )
    model = build("clip").eval()
    draw = torch.Generator().manual_seed(8)
    images, labels = torch.rand(40, 3, 32, 32, generator=draw), torch.randint(4, (40,), generator=draw)
    templates = [each.replace("{}", "{c}") for each in TEMPLATES]
    weights = theirs.zero_shot_classifier(model.network, model.tokenizer, CLASSES, templates, "cpu", amp=False)
    ours = ZeroShot(model, CLASSES, templates=TEMPLATES)
    torch.testing.assert_close(ours.class_features, weights.T, atol=1e-6, rtol=0)
    batches = [((images[rows] - model.mean) / model.std, labels[rows]) for rows in torch.split(torch.arange(40), 7)]
    logits, target = theirs.run_classification(model.network, weights, batches, "cpu", amp=False)
    # Its own `accuracy` does not run with numpy of today; this is what it counts.
    accuracy = float((logits.topk(1).indices[:, 0] == target).float().mean())
    plain = 0
    for z, label in zip(model.encode_image(images).detach(), labels.tolist(), strict=True):
        cosines = [float(z @ weights[:, place]) for place in range(4)]
        plain += cosines.index(max(cosines)) == label
    assert float((ours(images).argmax(1) == labels).float().mean()) == accuracy == pytest.approx(plain / 40)


def test_images_are_resized_as_for_retrieval_and_grey_ones_are_repeated(zero_shot: ZeroShot) -> None:
    draw = torch.Generator().manual_seed(3)
    large, grey = torch.rand(2, 3, 50, 41, generator=draw), torch.rand(2, 1, 32, 32, generator=draw)
    features = zero_shot.dual.encode_image(large)
    assert torch.equal(zero_shot(large), zero_shot.logits_from(features))
    assert torch.equal(zero_shot.sized(large), zero_shot.dual.sized(large))
    assert torch.equal(zero_shot(zero_shot.sized(large)), zero_shot(large))
    assert torch.equal(zero_shot(grey), zero_shot(grey.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="not normalised"):
        zero_shot(large - 1)


def test_gradients_reach_every_image_and_the_image_tower_alone(zero_shot: ZeroShot, images: Tensor) -> None:
    zero_shot.train()
    images.requires_grad_()
    F.cross_entropy(zero_shot(images), torch.tensor([0, 1, 2, 3])).backward()
    assert images.grad is not None and bool(images.grad.flatten(1).any(1).all())
    got = {name.split(".")[0] for name, weight in zero_shot.network.named_parameters() if weight.grad is not None}
    assert got == {"visual"}
    assert all(each.requires_grad == name.startswith("visual") for name, each in zero_shot.network.named_parameters())


def test_a_text_tower_that_would_train_is_refused(zero_shot: ZeroShot) -> None:
    zero_shot.dual.set_trainable("both")
    zero_shot.eval()
    with pytest.raises(UserError, match=r"model\.trainable=image"):
        zero_shot.train()


def test_class_weights_are_encoded_once_for_the_same_texts_and_weights(
    zero_shot: ZeroShot, monkeypatch: pytest.MonkeyPatch, images: Tensor
) -> None:
    passes = encoded(monkeypatch)
    weights = zero_shot.class_features
    zero_shot(images), zero_shot(images)
    assert passes == [12]
    again = ZeroShot(zero_shot.dual, CLASSES, templates=TEMPLATES)
    assert torch.equal(again.class_features, weights)
    assert passes == [12, 3]  # the first class alone, which is compared
    other = ZeroShot(zero_shot.dual, CLASSES, templates=TEMPLATES[:2])
    assert not torch.allclose(other.class_features, weights, atol=1e-3)
    assert passes == [12, 3, 8]
    assert len(list((cache_root() / "class_weights").glob("*.safetensors"))) == 2


def test_another_model_never_gets_the_class_weights_of_the_cache(build: Build) -> None:
    first, second = (ZeroShot(build("tiny", seed=seed), CLASSES, templates=TEMPLATES) for seed in (1, 2))
    for each in (first, second):
        torch.testing.assert_close(each.class_features, class_weights(each.dual), atol=1e-6, rtol=0)
    assert first.fingerprint() != second.fingerprint()


def test_equal_weights_under_another_activation_are_encoded_anew(build: Build) -> None:
    """GELU and QuickGELU have the same weights, and a network of a user's own no description that tells them apart."""
    first, second = build("clip"), build("clip")
    for module in second.network.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.GELU):
                setattr(module, name, nn.ReLU())
    assert first.fingerprint() == second.fingerprint() and first.description == second.description
    assert ZeroShot(first, CLASSES, templates=TEMPLATES).class_features.isfinite().all()
    found = ZeroShot(second, CLASSES, templates=TEMPLATES).class_features
    torch.testing.assert_close(found, class_weights(second), atol=1e-6, rtol=0)


def test_a_damaged_cache_is_made_anew(zero_shot: ZeroShot) -> None:
    weights = zero_shot.class_features
    (file,) = (cache_root() / "class_weights").glob("*.safetensors")
    file.write_bytes(b"nothing")
    again = ZeroShot(zero_shot.dual, CLASSES, templates=TEMPLATES)
    assert torch.equal(again.class_features, weights)


def test_class_weights_follow_weights_that_are_loaded_later(build: Build, path: Path, images: Tensor) -> None:
    zero_shot, other = ZeroShot(build("tiny", seed=1), CLASSES, templates=TEMPLATES), build("tiny", seed=2).eval()
    before, copied = zero_shot(images), copy.deepcopy(zero_shot)
    save_weights(other, path)
    load_weights(zero_shot, path)
    torch.testing.assert_close(zero_shot.class_features, class_weights(other), atol=1e-6, rtol=0)
    assert torch.equal(copied(images), before)


def test_what_is_saved_is_a_dual_encoder(build: Build, path: Path, images: Tensor) -> None:
    zero_shot = ZeroShot(build("tiny"), CLASSES, templates=TEMPLATES)
    save_weights(zero_shot, path)
    again = load_dual(path).eval()
    assert again.fingerprint() == zero_shot.dual.fingerprint()
    assert torch.equal(again.encode_image(images), zero_shot.dual.encode_image(images))
    assert all(weight.requires_grad for name, weight in again.network.named_parameters() if name != "logit_bias")


def test_the_fingerprint_covers_weights_and_texts(build: Build) -> None:
    model = build("tiny")
    found = {
        ZeroShot(model, CLASSES, templates=TEMPLATES).fingerprint(),
        ZeroShot(model, CLASSES, templates=TEMPLATES[:1]).fingerprint(),
        ZeroShot(model, CLASSES, templates=TEMPLATES, names=("circle", "square", "large", "blue")).fingerprint(),
        ZeroShot(build("tiny", seed=9), CLASSES, templates=TEMPLATES).fingerprint(),
        model.fingerprint(),
    }
    assert len(found) == 5
    assert ZeroShot(build("tiny"), CLASSES, templates=TEMPLATES).fingerprint() in found


def test_a_logit_bias_is_added_and_its_scale_has_no_ceiling(build: Build, images: Tensor) -> None:
    """As SigLIP publishes its logits; both change nothing of an argmax."""
    model = build("clip").eval()
    plain = ZeroShot(model, CLASSES, templates=TEMPLATES)(images) / model.logit_scale
    network: Any = model.network
    network.logit_bias = nn.Parameter(torch.tensor([-16.5]))
    network.logit_scale.data.fill_(4.77)
    found = ZeroShot(model, CLASSES, templates=TEMPLATES)(images)
    torch.testing.assert_close(found, torch.tensor(4.77).exp() * plain - 16.5, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attack", [APGD(steps=5), EOT(APGD(steps=2), draws=2), AutoAttack(steps=2, queries=10)])
def test_a_verdict_does_not_depend_on_the_batch(build: Build, attack: Any) -> None:
    zero_shot = ZeroShot(build("clip" if isinstance(attack, APGD) else "tiny"), CLASSES, templates=TEMPLATES)
    images = torch.rand(64, 3, 32, 32, generator=torch.Generator().manual_seed(5))
    labels, threat = zero_shot(images).argmax(1), ThreatModel(eps=0.01)
    found = []
    for size in (1, 7, 16, 64) if not isinstance(attack, AutoAttack) else (7, 64):
        rows = torch.split(torch.arange(64 if size > 1 else 9), size)
        parts = [attack(zero_shot, images[each], labels[each], threat, sample_ids=each) for each in rows]
        found.append(torch.cat([each.images for each in parts]))
    assert all(torch.equal(each, found[-1][: len(each)]) for each in found)
    assert torch.equal(zero_shot(images)[:1], zero_shot(images[:1]))


def test_mistakes_are_told_in_a_sentence(build: Build) -> None:
    model = build("tiny")
    for message, settings in (
        (r"'a photo' without \{\}", {"templates": ["a photo"]}),
        ("templates is empty", {"templates": []}),
        ("class_names has 3 names, but there are 4", {"names": ("a", "b", "c")}),
        ("'red' and 'red' as the same tokens", {"names": ("red", "blue", "red", "square")}),
        ("cannot tell them apart", {"names": ("zebra", "lion", "red", "square")}),
    ):
        with pytest.raises(UserError, match=message):
            ZeroShot(model, CLASSES, **{"templates": TEMPLATES, **settings})  # type: ignore[arg-type]


def test_equal_classes_of_a_published_list_are_told(build: Build, images: Tensor) -> None:
    names = ("red", "blue", "red", "square")
    zero_shot = ZeroShot(build("tiny"), CLASSES, templates=TEMPLATES, names=names, allow_equal=True)
    assert torch.equal(zero_shot(images)[:, 0], zero_shot(images)[:, 2])
    assert "Classes whose texts are equal: 'red' and 'red'." in zero_shot.notes(32, 32)


def test_the_foot_of_a_table_tells_templates_and_words(build: Build) -> None:
    notes = ZeroShot(build("tiny"), CLASSES, templates=["a photo of a {}."], origin="simple").notes(40, 40)
    assert notes == [
        "The model resizes images from 40 x 40 to 32 x 32 pixels.",
        "Zero-shot: 4 classes in 1 template (simple), such as 'a photo of a circle.'.",
        "The model does not know 1 of the 7 words of its class texts (photo).",
    ]
