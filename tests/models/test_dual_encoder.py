"""The contract that every wrapped network fulfils, and the wrapper's own duties."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from robustcli.models import DualEncoder, dual_encoder, load_dual
from robustcli.models.text import crops, read_text
from robustcli.utils.errors import UserError

from .conftest import CAPTIONS, KINDS


def test_embeddings_have_unit_norm_in_float32(model: DualEncoder, images: Tensor) -> None:
    for features, rows in ((model.encode_image(images), 4), (model.encode_text(model.tokenize(CAPTIONS)), 3)):
        assert features.shape == (rows, 16)
        assert features.dtype == torch.float32
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(rows))


def test_embeddings_stay_float32_under_autocast(model: DualEncoder, images: Tensor) -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for features in (model.encode_image(images), model.encode_text(model.tokenize(CAPTIONS))):
            assert features.dtype == torch.float32
            torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))


def test_every_weight_gets_a_gradient(model: DualEncoder, images: Tensor) -> None:
    with torch.no_grad():
        for weight in model.parameters():  # some start at zero and would hide those behind them
            weight[...] = weight if bool(weight.any()) else 0.1
    similarity = model.encode_image(images[:3]) @ model.encode_text(model.tokenize(CAPTIONS)).T
    F.cross_entropy(model.logit_scale * similarity, torch.arange(3)).backward()
    for name, weight in model.named_parameters():
        assert (weight.grad is not None and bool(weight.grad.any())) or not weight.requires_grad, name


def test_rows_do_not_depend_on_their_neighbours(model: DualEncoder, images: Tensor) -> None:
    model.eval()
    torch.testing.assert_close(model.encode_image(images)[2:3], model.encode_image(images[2:3]), atol=1e-6, rtol=0)
    together = model.encode_text(model.tokenize(CAPTIONS))
    for row, caption in enumerate(CAPTIONS):  # alone, the caption is cropped to another length
        alone = model.encode_text(model.tokenize([caption]))
        torch.testing.assert_close(together[row : row + 1], alone, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kind", "cropped"), [(kind, not kind.startswith("bidirectional")) for kind in KINDS])
def test_crop_is_exact_and_only_where_it_is(build: Callable[..., DualEncoder], kind: str, cropped: bool) -> None:
    model = build(kind)
    tokens = model.tokenize(CAPTIONS)
    assert crops(model.network) is cropped
    assert (model.crop(tokens).shape[1] < tokens.shape[1]) is cropped
    whole = model.network.encode_text(tokens)  # the network's own forward pass, over all positions
    torch.testing.assert_close(model.encode_text(tokens), F.normalize(whole, dim=-1), atol=1e-6, rtol=0)


def test_crop_ends_at_the_last_end_of_text(build: Callable[..., DualEncoder]) -> None:
    model = build("tiny")
    assert model.crop(model.tokenize(CAPTIONS)).shape == (3, 11)
    assert model.crop(model.tokenize(CAPTIONS[:1])).shape == (1, 5)


def test_embeddings_stand_in_for_the_look_up(model: DualEncoder) -> None:
    tokens = model.tokenize(CAPTIONS)
    for length in {tokens.shape[1], model.crop(tokens).shape[1]}:
        table = model.token_embedding().weight.detach()
        embeddings = table[tokens[:, :length]].requires_grad_()
        features = model.encode_text(tokens, embeddings)
        torch.testing.assert_close(features, model.encode_text(tokens), atol=0, rtol=0)
        (gradient,) = torch.autograd.grad(features[:, 0].sum(), embeddings)
        assert bool(gradient[:, 1].any())
    moved = table[tokens.flip(0)]
    assert not torch.allclose(model.encode_text(tokens, moved), features)
    torch.testing.assert_close(model.encode_text(tokens), features, atol=0, rtol=0)  # nothing stays behind


def test_embeddings_that_do_not_cover_the_tokens_are_an_error(model: DualEncoder) -> None:
    tokens = model.tokenize(CAPTIONS)
    with pytest.raises(ValueError, match="do not cover"):
        model.encode_text(tokens, model.token_embedding()(tokens)[:, :3])
    with pytest.raises(ValueError, match="do not cover"):
        model.encode_text(tokens, model.token_embedding()(tokens)[:1])


def test_mean_and_std_are_applied_exactly_once(model: DualEncoder, images: Tensor) -> None:
    model.eval()
    normalised = (images - torch.as_tensor(model.mean).view(3, 1, 1)) / torch.as_tensor(model.std).view(3, 1, 1)
    golden = F.normalize(model.network.encode_image(normalised), dim=-1)
    torch.testing.assert_close(model.encode_image(images), golden, atol=1e-6, rtol=0)
    assert not torch.allclose(F.normalize(model.network.encode_image(images), dim=-1), golden, atol=1e-4)


def test_resize_only_when_the_size_differs(
    build: Callable[..., DualEncoder], images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("tiny")
    hard = (torch.rand(2, 3, 48, 40, generator=torch.Generator().manual_seed(2)) > 0.5).float()
    small = F.interpolate(hard, (32, 32), mode="bicubic", antialias=True)
    assert small.min() < 0 < 1 < small.max()  # bicubic overshoots on hard edges
    assert torch.equal(model.encode_image(hard), model.encode_image(small.clamp(0, 1)))
    monkeypatch.setattr(F, "interpolate", None)
    model.encode_image(images)


@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_pixels_out_of_range_are_an_error(build: Callable[..., DualEncoder], images: Tensor, value: float) -> None:
    images[2, 1, 5, 7] = value
    with pytest.raises(ValueError, match=r"expected \[0, 1\]"):
        build("tiny").encode_image(images)


@pytest.mark.parametrize("wrong", [torch.zeros(3, 32, 32), torch.zeros(1, 3, 32, 32, dtype=torch.uint8)])
def test_images_of_another_kind_are_an_error(build: Callable[..., DualEncoder], wrong: Tensor) -> None:
    with pytest.raises(ValueError, match="expected floats"):
        build("tiny").encode_image(wrong)


def test_gradient_reaches_the_pixels_and_leaves_the_weights(model: DualEncoder, images: Tensor) -> None:
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(model.encode_image(images)[:, 0].sum(), images)
    assert bool(gradient.flatten(1).any(dim=1).all())
    assert all(weight.grad is None for weight in model.parameters())


def test_forward_in_eval_mode_changes_no_state(model: DualEncoder, images: Tensor) -> None:
    before = model.eval().fingerprint()
    model.encode_image(images)
    model.encode_text(model.tokenize(CAPTIONS))
    assert model.fingerprint() == before


def test_tokens_are_remembered_within_bounds(
    build: Callable[..., DualEncoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, asked = build("tiny"), []
    tokenizer = model.tokenizer
    model.tokenizer = lambda captions: asked.extend(captions) or tokenizer(captions)
    first = model.tokenize([*CAPTIONS, CAPTIONS[0]])
    assert torch.equal(first[0], first[3])
    first[0] = 0  # a caller may write into what it got
    assert torch.equal(model.tokenize(CAPTIONS), tokenizer(CAPTIONS))
    assert asked == list(CAPTIONS)
    monkeypatch.setattr(dual_encoder, "_CACHED_CAPTIONS", 2)
    assert len(model.tokenize(["red", "blue", "red circle", "top"])) == 4
    model.tokenize(["top"])
    model.tokenize(CAPTIONS[:1])
    assert asked == [*CAPTIONS, "red", "blue", "red circle", "top", CAPTIONS[0]]


def test_tokenize_takes_captions_and_not_one_string(build: Callable[..., DualEncoder]) -> None:
    with pytest.raises(TypeError, match="sequence of captions"):
        build("tiny").tokenize("a red circle")
    assert build("tiny").tokenize([]).shape == (0, 26)


def test_logit_scale_is_bounded_and_can_come_back(build: Callable[..., DualEncoder]) -> None:
    model = build("tiny")
    learnt = model.network.logit_scale
    torch.testing.assert_close(model.logit_scale, torch.tensor(1 / 0.07))
    (gradient,) = torch.autograd.grad(model.logit_scale, learnt)
    torch.testing.assert_close(gradient, torch.tensor(1 / 0.07))
    with torch.no_grad():
        learnt.fill_(5.0)  # exp(5) is 148
    assert model.logit_scale.item() == 100.0
    assert torch.autograd.grad(-model.logit_scale, learnt)[0] == 0.0  # a loss that wants more gets no more
    assert torch.autograd.grad(model.logit_scale, learnt)[0] > 0.0  # a loss that wants less moves it


@pytest.mark.parametrize("which", ["image", "text", "both"])
def test_only_the_chosen_tower_trains(model: DualEncoder, which: str) -> None:
    model.set_trainable("text")
    model.set_trainable(which)  # type: ignore[arg-type]
    trained = {name: weight.requires_grad for name, weight in model.network.named_parameters()}
    assert trained.pop("logit_scale")
    for name, trains in trained.items():
        assert trains is (which in ("both", "image" if name.startswith("visual.") else "text")), name


def test_what_was_built_fixed_stays_fixed(build: Callable[..., DualEncoder]) -> None:
    network = build("tiny").network
    network.visual.positions.requires_grad_(False)
    model = DualEncoder(network, lambda captions: torch.ones(0), image_size=32, mean=(0,) * 3, std=(1,) * 3)
    assert not network.visual.positions.requires_grad
    with pytest.raises(ValueError, match="expected image, text or both"):
        model.set_trainable("vision")  # type: ignore[arg-type]


def test_fingerprint_sees_every_bit_of_the_weights(model: DualEncoder) -> None:
    before = model.fingerprint()
    weight = next(model.network.visual.parameters())
    with torch.no_grad():
        weight.view(-1)[0] = torch.nextafter(weight.view(-1)[0], torch.tensor(9.0))
    assert model.fingerprint() != before


def test_reading_without_crop_equals_reading_with_it(build: Callable[..., DualEncoder]) -> None:
    model = build("clip")
    tokens = model.tokenize(CAPTIONS)
    torch.testing.assert_close(
        read_text(model.network, model.crop(tokens)), read_text(model.network, tokens), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("kind", ["tiny", "clip", "custom_text"])
def test_patches_stand_in_the_space_of_the_embeddings_row_by_row(
    build: Callable[..., DualEncoder], kind: str, images: Tensor
) -> None:
    model = build(kind).eval()
    features, patches = model.encode_patches(images)
    torch.testing.assert_close(features, model.encode_image(images, unit=False), atol=1e-5, rtol=1e-5)
    side = 4 if kind == "tiny" else 2
    assert patches.shape == (4, side**2, 16) and patches.dtype == torch.float32
    assert kind == "tiny" or not model.network.visual.output_tokens, "the tower is as it was"
    with torch.no_grad():  # without attention and MLP a patch embedding is one of its own pixels
        for name, weight in model.network.visual.named_parameters():
            if "blocks" in name:
                weight.zero_()
    changed = images.clone()
    changed[:, :, : 32 // side, 32 // side : 64 // side] = 0.5  # the second patch of the first row
    apart = (model.encode_patches(images)[1] - model.encode_patches(changed)[1]).abs().amax((0, 2)) > 1e-6
    assert apart.nonzero().flatten().tolist() == [1]


def test_a_tower_without_patches_is_refused(build: Callable[..., DualEncoder], images: Tensor) -> None:
    with pytest.raises(UserError, match="the image tower ModifiedResNet has no patch tokens"):
        build("resnet").encode_patches(images)


def test_a_text_is_computed_in_the_width_of_its_own_length_whatever_stands_beside_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two widths differ in their last bits on some CPUs, which a search of texts would turn into another text."""
    model, seen = load_dual("tiny").eval(), []
    texts = ["a red square", " ".join(["a red square"] * 7), "a blue circle"]
    alone = torch.cat([model.encode_text(model.tokenize([text])) for text in texts])

    def recorded(network: nn.Module, tokens: Tensor, embeddings: Tensor | None = None) -> Tensor:
        seen.append(tokens.shape[1])
        return read_text(network, tokens, embeddings)

    monkeypatch.setattr("robustcli.models.dual_encoder.read_text", recorded)
    tokens = model.tokenize(texts)
    vectors = model.token_embedding()(tokens)
    for embeddings in (None, vectors):
        assert torch.equal(model.encode_text(tokens, embeddings), alone)
    assert seen == [16, 26, 16, 26]
