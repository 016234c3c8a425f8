"""Learnt prompts: what stands for a class, what trains, what a file of them serves."""

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

from robustcli.defenses import OnClasses, TeCoA
from robustcli.models import DualEncoder, ZeroShot, load_dual
from robustcli.models.prompt import Prompt, read_prompt, save_prompt
from robustcli.utils.errors import UserError

CLASSES = ("red", "green", "blue")


@pytest.fixture
def dual() -> DualEncoder:
    return load_dual("tiny")


def classifier(dual: DualEncoder, prompt: Prompt) -> ZeroShot:
    return ZeroShot(dual, CLASSES, templates=["{}"], prompt=prompt)


@pytest.mark.parametrize("per_class", [False, True])
def test_the_vectors_of_words_are_a_prompt_that_says_these_words(dual: DualEncoder, per_class: bool) -> None:
    said = ZeroShot(load_dual("tiny"), CLASSES, templates=["a small {}."])
    words = [token for token in dual.tokenize(["a small"])[0] if token not in dual.tokenize([""])[0]]
    context = dual.token_embedding()(torch.stack(words)).detach()
    context = context.expand(len(CLASSES), -1, -1) if per_class else context
    ours = classifier(dual, Prompt(length=2, per_class=per_class, context=context))
    torch.testing.assert_close(ours.class_features, said.class_features)


def test_a_step_moves_the_prompt_alone_and_the_class_weights_follow(dual: DualEncoder) -> None:
    model = classifier(dual, Prompt(length=3)).train()
    before = {name: weight.clone() for name, weight in model.network.state_dict().items()}
    assert [name for name, weight in model.named_parameters() if weight.requires_grad] == [
        "network.prompt_context",
    ]
    features = F.normalize(torch.randn(4, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    optimiser = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=1.0)
    with torch.no_grad():
        earlier = model.class_features.clone()
    F.cross_entropy(model.logits_from(features), torch.tensor([0, 1, 2, 0])).backward()
    optimiser.step()
    changed = [name for name, weight in model.network.state_dict().items() if not torch.equal(weight, before[name])]
    assert changed == ["prompt_context"]
    with torch.no_grad():
        assert not torch.allclose(model.class_features, earlier)
        assert not model.class_features.requires_grad


def test_the_gradient_of_the_prompt_is_that_of_finite_differences(dual: DualEncoder) -> None:
    model = classifier(dual, Prompt(length=2))
    features = F.normalize(torch.randn(5, 128, generator=torch.Generator().manual_seed(0)), dim=1)
    context = model.network.get_parameter("prompt_context")

    def loss() -> torch.Tensor:
        return F.cross_entropy(model.logits_from(features), torch.tensor([0, 1, 2, 0, 1]))

    (gradient,) = torch.autograd.grad(loss(), context)
    direction = gradient / gradient.norm()
    step = 1e-2
    with torch.no_grad():
        context += step * direction
        above = loss()
        context -= 2 * step * direction
        below = loss()
    assert float(above - below) / (2 * step) == pytest.approx(float(gradient.norm()), rel=0.02)


def test_a_file_of_a_prompt_answers_as_the_model_that_learnt_it(dual: DualEncoder, tmp_path: Path) -> None:
    model = classifier(dual, Prompt(length=3, seed=4))
    save_prompt(dual, tmp_path / "prompt.safetensors")
    again = classifier(load_dual("tiny"), read_prompt(tmp_path / "prompt.safetensors"))
    torch.testing.assert_close(again.class_features, model.class_features, rtol=0, atol=0)
    assert again.fingerprint() == model.fingerprint()
    other = load_dual("tiny")
    with torch.no_grad():
        other.token_embedding().weight.add_(1e-3)
    with pytest.raises(UserError, match="of another text tower"):
        classifier(other, read_prompt(tmp_path / "prompt.safetensors"))


def test_what_a_prompt_cannot_do_is_said(dual: DualEncoder, tmp_path: Path) -> None:
    for length in (24, 40):  # the names are cut, and so are the vectors
        with pytest.raises(UserError, match=rf"prompt\.length is {length}"):
            classifier(dual, Prompt(length=length))
    with pytest.raises(UserError, match="length is 0"):
        Prompt(length=0)
    with pytest.raises(UserError, match="no such file"):
        read_prompt(tmp_path / "none.safetensors")
    weights = Path(__file__).parents[2] / "robustcli" / "assets" / "tiny_scenes.safetensors"
    with pytest.raises(UserError, match="holds no learnt prompt"):
        read_prompt(weights)
    with pytest.raises(UserError, match="a learnt prompt leaves as it is"):
        OnClasses(TeCoA(), classifier(dual, Prompt(length=2)))
    per_class = dataclasses.replace(Prompt(length=2, per_class=True), context=torch.zeros(5, 2, 128))
    with pytest.raises(UserError, match="or other classes"):
        classifier(dual, per_class)
