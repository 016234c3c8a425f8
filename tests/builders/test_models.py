"""Models that cannot read the captions."""

import json
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from robustcli.builders.models import build_dual_encoder, build_trained
from robustcli.config.compose import compose
from robustcli.data import Scenes
from robustcli.models import DualEncoder, WordTokenizer, build_vocabulary, save_weights
from robustcli.utils.errors import UserError


def test_a_model_that_does_not_know_the_words_is_refused(
    small_model: DualEncoder, scenes: Scenes, tmp_path: Any
) -> None:
    save_weights(small_model, tmp_path / "w.safetensors")
    config = compose("evaluate", []).model
    sizes = {"width": 32, "layers": 2, "text_width": 32, "text_layers": 1}
    config = type(config)({**config, **sizes, "checkpoint": str(tmp_path / "w.safetensors")})
    build_dual_encoder(config, None, scenes, seed=0)
    scenes.captions = ["two dogs chase one another across the snow"] * 10
    with pytest.raises(UserError, match="does not know"):
        build_dual_encoder(config, None, scenes, seed=0)


def test_random_weights_follow_the_seed_of_the_run(scenes: Scenes, tmp_path: Any) -> None:
    """Also those of open_clip's architectures, which all runs shared once."""
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 1}}
    content = {"model_cfg": sizes, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(content))
    config = compose("evaluate", ["model=open_clip", f"model.architecture=local-dir:{tmp_path}"]).model
    first, same, other = (build_dual_encoder(config, None, scenes, seed=seed).fingerprint() for seed in (1, 1, 2))
    assert first == same != other


def test_a_folder_of_open_clip_that_brings_weights_is_judged(scenes: Scenes, tmp_path: Any) -> None:
    vision = {"image_size": 32, "patch_size": 16, "width": 32, "head_width": 16, "layers": 1}
    sizes = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": {"width": 32, "heads": 2, "layers": 1}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": sizes, "preprocess_cfg": {}}))
    config = compose("evaluate", ["model=open_clip", f"model.architecture=local-dir:{tmp_path}"]).model
    with pytest.raises(UserError, match="has random weights"):
        build_trained(config, None, scenes, seed=0)
    trained = build_dual_encoder(config, None, scenes, seed=3)
    torch.save(trained.network.state_dict(), tmp_path / "open_clip_pytorch_model.bin")
    assert build_trained(config, None, scenes, seed=0).fingerprint() == trained.fingerprint()


def test_a_vocabulary_has_the_synonyms_that_no_caption_has() -> None:
    """A training could not learn from an edit what one token for all unknown words has lost."""
    never, rarely = (Scenes(split="train", synonym_frequency=share, train=400) for share in (0.0, 0.2))
    config = OmegaConf.create({"_target_": "robustcli.models.tiny", "checkpoint": None})
    words = []
    for data in (never, rarely):
        model = build_dual_encoder(config, None, data, seed=0)
        assert isinstance(model.tokenizer, WordTokenizer)
        words.append(set(model.tokenizer.words))
    assert words[0] == words[1] and "crimson" in words[0]
    plain = build_vocabulary(never.captions)
    assert len(plain) < len(words[0])
