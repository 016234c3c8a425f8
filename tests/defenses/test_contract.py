"""The contract of every defence: a new YAML in conf/{purifier,objective,defense} is tested here as it is."""

import copy

import pytest
import torch
from hydra.utils import get_class
from torch import Tensor

from robustcli.attacks import PGD, SequentialAttack, ThreatModel
from robustcli.builders.defences import build_purified
from robustcli.builders.objectives import build_class_objective, build_objective
from robustcli.config import groups as config_groups
from robustcli.config.compose import compose
from robustcli.data import Digits, Scenes
from robustcli.data.sampling import ClassBatch, PairSampler
from robustcli.data.scenes.world import COLOURS
from robustcli.defenses import Cleaner, PairObjective, PurifiedClassifier, VisualObjective
from robustcli.models import Classifier, DualEncoder, ZeroShot, small_cnn
from robustcli.utils.errors import UserError

CHOICES = config_groups.groups()
THREAT = ThreatModel(norm="linf", eps="8/255", words=1)


@pytest.fixture(scope="module")
def digits() -> Digits:
    return Digits(split="test")


@pytest.fixture
def classifier(digits: Digits) -> Classifier:
    return small_cnn(classes=digits.classes, channels=1, widths=[4, 4, 4], seed=0)


def gradients(model: torch.nn.Module) -> list[Tensor]:
    return [torch.zeros(()) if each.grad is None else each.grad.clone() for each in model.parameters()]


# Of what cleans images in front of a model


@pytest.fixture(params=CHOICES["purifier"])
def purified(request: pytest.FixtureRequest, digits: Digits, classifier: Classifier) -> PurifiedClassifier:
    if request.param == "diffpure":
        pytest.importorskip("diffusers", reason="diffusers is heavy (60 MB, 7 s of import): robustcli[diffusion]")
    node = compose("purify", [f"purifier={request.param}"]).purifier
    model = build_purified(node, digits, torch.device("cpu"))(classifier)
    assert isinstance(model, PurifiedClassifier)
    return model.eval()


def test_cleaned_images_are_images(purified: PurifiedClassifier, digits: Digits) -> None:
    cleaner: Cleaner = purified.cleaner
    images = digits.images(torch.arange(6))
    before = images.clone()
    cleaned = cleaner(images)
    assert cleaned.shape == images.shape and cleaned.dtype == torch.float32 and bool(cleaned.isfinite().all())
    assert cleaned.min() >= 0 and cleaned.max() <= 1 and torch.equal(images, before)
    assert cleaner.randomised == (not torch.equal(cleaner(images), cleaner(images))), "it says of itself what it does"


def test_a_draw_depends_on_seed_and_name_alone(purified: PurifiedClassifier, digits: Digits) -> None:
    cleaner, images = purified.cleaner, digits.images(torch.arange(4))

    def cleaned(rows: list[int], seed: int = 3) -> Tensor:
        return cleaner.finish(cleaner.prepare(images[rows]), cleaner.named_noise(rows, images, seed=seed))

    whole, state = cleaned([0, 1, 2, 3]), torch.get_rng_state()
    assert torch.allclose(cleaned([3, 1]), whole[[3, 1]], atol=1e-5)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from the global generator"
    assert cleaner.randomised == (not torch.equal(cleaned([0, 1, 2, 3], seed=4), whole))


def test_an_adaptive_attacker_gets_a_gradient(purified: PurifiedClassifier, digits: Digits) -> None:
    images = digits.images(torch.arange(4)).requires_grad_(True)
    (slope,) = torch.autograd.grad(purified(images).logsumexp(1).sum(), images)
    assert bool(slope.isfinite().all()) and bool((slope.flatten(1).abs().amax(1) > 0).all())
    assert all(weight.grad is None for weight in purified.parameters())


# Of the objectives of a training


@pytest.mark.parametrize("kind", ["classifier", "dual encoder"])
@pytest.mark.parametrize("name", CHOICES["objective"])
def test_a_classifier_can_be_trained_on_it(
    name: str, kind: str, classifier: Classifier, small_model: DualEncoder, digits: Digits
) -> None:
    if kind == "dual encoder":
        classifier = ZeroShot(small_model, COLOURS, templates=["something {}"])
    node = compose("train-classifier", [f"objective={name}"]).objective
    if kind == "classifier" and issubclass(get_class(node._target_), VisualObjective):
        with pytest.raises(UserError, match="choose model=tiny or model=open_clip"):
            build_class_objective(node, classifier)
        return
    objective = build_class_objective(node, classifier)
    attack = PGD(steps=2, keep="last") if objective.takes_attack else None
    objective.check(attack, THREAT)
    batch = ClassBatch(torch.arange(8), digits.labels[:8] % len(COLOURS))
    images = digits.images(batch.image_ids)

    def step(seed: int, threat: ThreatModel = THREAT) -> tuple[Tensor, list[Tensor], Classifier]:
        model = copy.deepcopy(classifier).train()
        state = torch.get_rng_state()
        loss = objective.loss(model, attack, threat, images.clone(), batch, seed=seed)
        loss.backward()
        assert loss.ndim == 0 and bool(loss.isfinite()) and model.training
        assert torch.equal(torch.get_rng_state(), state), "its draws are named, not those of the global generator"
        return loss.detach(), gradients(model), model

    loss, slopes, model = step(1)
    assert all(
        bool(each.abs().sum() > 0) == weight.requires_grad
        for each, weight in zip(slopes, model.parameters(), strict=True)
        if weight.ndim
    )
    again, same, _ = step(1)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(slopes, same, strict=True))
    wider = step(1, THREAT.at("16/255"))[0]
    assert objective.takes_threat == (not torch.equal(wider, loss)), "it trains within the threat model, or reads none"
    if objective.takes_threat:
        assert not torch.equal(step(2**40)[0], loss), "an attack starts elsewhere in each step"


@pytest.fixture(params=CHOICES["defense"])
def pairs_objective(request: pytest.FixtureRequest) -> PairObjective:
    return build_objective(compose("train-mat", [f"defense={request.param}"]).defense)


def test_a_dual_encoder_can_be_trained_on_it(
    pairs_objective: PairObjective, scenes: Scenes, small_model: DualEncoder, mat_attack: SequentialAttack
) -> None:
    pairs_objective.check(mat_attack, THREAT)
    batch = PairSampler(scenes, batch_size=8, seed=0)(0)
    images = scenes.images(batch.image_ids)
    reference = copy.deepcopy(small_model).eval() if pairs_objective.takes_reference else None
    if reference is not None:  # a first step, at the reference itself, would have no gradient
        small_model.network.load_state_dict({k: 1.1 * v for k, v in small_model.network.state_dict().items()})

    def step(seed: int) -> tuple[Tensor, list[Tensor]]:
        small_model.zero_grad(set_to_none=True)
        state = torch.get_rng_state()
        loss = pairs_objective.loss(
            small_model, mat_attack, THREAT, images.clone(), batch, seed=seed, reference=reference
        )
        loss.backward()
        assert loss.ndim == 0 and bool(loss.isfinite()) and torch.equal(torch.get_rng_state(), state)
        return loss.detach(), gradients(small_model)

    loss, slopes = step(1)
    assert sum(float(each.abs().sum()) for each in slopes) > 0
    again, same = step(1)
    assert torch.equal(loss, again) and all(torch.equal(a, b) for a, b in zip(slopes, same, strict=True))
    draws = "image" in pairs_objective.sides or getattr(pairs_objective, "attacked_captions", 1.0) < 1.0
    if pairs_objective.sides and draws:
        assert not torch.equal(step(2**40)[0], loss), "an attack starts elsewhere in each step"
