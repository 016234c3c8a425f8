"""``transformers``: a CLIP-like model of the transformers library from its folder, tokenizer and preprocessing too."""

import importlib
import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from robustcli.models.assembly import seeded_constructors, settings_and_weights
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.hf_towers import HuggingFaceTokenizer, HuggingFaceTowers
from robustcli.models.preprocessing import published
from robustcli.models.weights import Checkpoint, assign, check_shapes, held_in, read_weights, with_image_tower
from robustcli.utils.errors import UserError, constructor_errors

_KINDS = {  # model_type of a configuration: the class, and whether its text tower masks padding
    "clip": ("CLIPModel", False),
    "siglip": ("SiglipModel", False),
    "altclip": ("AltCLIPModel", True),
    "chinese_clip": ("ChineseCLIPModel", True),
}
_REPLACED = ("attn_implementation", "quantization_config", "auto_map", "dtype")  # of memory, speed and foreign code
_MOST_LAYERS = 1000


def transformers(
    path: str, *, checkpoint: Checkpoint | None = None, context_length: int | None = None, seed: int = 0
) -> DualEncoder:
    """A dual encoder of the transformers library: CLIP, SigLIP (also SigLIP 2 of a fixed resolution), AltCLIP, Chinese
    CLIP.

    Dropout is off: a draw of it would be named by nothing.

    Args:
        path: folder with ``config.json``, the files of the tokenizer, and usually weights and
            ``preprocessor_config.json``; nothing is downloaded, and no code of the folder is run.
        checkpoint: weights in place of the folder's; those of the image tower alone stand beside its text tower.
        context_length: tokens of a caption; None: as many as the tokenizer and the position table of the text tower
            allow.
        seed: of random weights, where the folder has none and none are given.

    Raises:
        UserError: no such folder, a model of another kind, or weights of another model.
    """
    folder = Path(path).expanduser().resolve()
    library = _library()
    with _quiet():
        config, settings = _configuration(folder)
    kind, masked = _KINDS[settings["model_type"]]
    stored, weights = settings_and_weights(transformers, {"context_length": context_length}, checkpoint)
    own = held_in(folder)
    weights = read_weights(own) if weights is None and own is not None else weights

    def build() -> HuggingFaceTowers:
        model = getattr(library, kind)(config)
        return HuggingFaceTowers(model.float(), config.text_config.pad_token_id if masked else None)

    with constructor_errors(f"model transformers of {folder}"), _quiet():
        if weights is not None and not weights.of_image_alone:
            check_shapes(weights, build)
        with seeded_constructors(seed):
            network = build()
        tokenizer = _tokenizer(library, folder, config, stored["context_length"])
    side = int(config.vision_config.image_size)
    preprocessing = published(folder, settings["model_type"], side)
    model = DualEncoder(
        network,
        tokenizer,
        image_size=side,
        mean=preprocessing.mean,
        std=preprocessing.std,
        interpolation=preprocessing.interpolation,
        max_logit_scale=math.inf if hasattr(network, "logit_bias") else 100.0,
        description={"factory": "transformers", "path": str(folder), "context_length": tokenizer.context_length},
    )
    if weights is not None and weights.of_image_alone:
        if own is None or not checkpoint:
            raise UserError(
                f"checkpoint {weights.path} holds the image tower alone, and {folder} has no text tower to stand "
                "beside it: give a folder in model.path that has the weights of both."
            )
        assign(model, read_weights(own))
        weights = with_image_tower(weights, network.state_dict(), str(own))
    if weights is not None:
        assign(model, replace(weights, remarks=[*preprocessing.remarks, *weights.remarks]))
    else:
        model.remarks = list(preprocessing.remarks)
    return model


def _library() -> Any:
    try:
        return importlib.import_module("transformers")  # seconds of imports, which no other model needs
    except ImportError as error:
        raise UserError(f"model=transformers needs transformers ({error}): install robustcli[hf].") from error


def _configuration(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The configuration of a folder as an object of the library, and as it stands in the file."""
    if not folder.is_dir():
        raise UserError(
            f"model.path is {folder}, where no folder is: give one of transformers, with a config.json; nothing is "
            "downloaded."
        )
    file = folder / "config.json"
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
        kind = settings["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        more = ": architecture=local-dir:FOLDER of model=open_clip reads it" if _is_open_clip(folder) else ""
        raise UserError(f"model.path is {folder}, which has no config.json of transformers{more}.") from error
    if kind not in _KINDS:
        flexible = " (SigLIP 2 of flexible resolution, whose images are no squares)" if kind == "siglip2" else ""
        raise UserError(
            f"model.path is {folder}, whose model_type is {kind!r:.60}{flexible}: expected one of {', '.join(_KINDS)}."
        )
    with constructor_errors(f"model transformers of {folder}"):
        config = getattr(_library(), f"{_KINDS[kind][0].removesuffix('Model')}Config").from_dict(_plain(settings))
        layers = max(config.text_config.num_hidden_layers, config.vision_config.num_hidden_layers)
    if layers > _MOST_LAYERS:
        raise UserError(f"{file} has {layers} layers, more than can be meant: at most {_MOST_LAYERS:,}.")
    return config, settings


def _is_open_clip(folder: Path) -> bool:
    return (folder / "open_clip_config.json").is_file()


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without those that choose code, types or kernels, and without dropout."""
    kept = {key: value for key, value in settings.items() if not any(word in key for word in _REPLACED)}
    return {
        key: _plain(value) if isinstance(value, Mapping) else 0.0 if "dropout" in key else value
        for key, value in kept.items()
    }


def _tokenizer(library: Any, folder: Path, config: Any, context_length: int | None) -> HuggingFaceTokenizer:
    """The tokenizer of a folder, whose ids the text tower has; a `UserError` where there is none."""
    text = config.text_config
    try:
        made = library.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of libraries whose exceptions change from version to version
        line = next(iter(str(error).splitlines()), type(error).__name__)
        raise UserError(
            f"model.path is {folder}, of which the tokenizer cannot be read ({line:.200}): its files, such as "
            "tokenizer.json, belong into the folder."
        ) from error
    if len(made) > text.vocab_size:
        raise UserError(
            f"the tokenizer of {folder} has {len(made):,} tokens, the text tower {text.vocab_size:,}: it is of another "
            "model."
        )
    ends = [int(text.pad_token_id)] if _KINDS[config.model_type][1] else []
    marks = {"padding": (made.pad_token_id, ends or [made.pad_token_id])}
    if config.model_type == "clip" and text.eos_token_id != 2:  # which stands for the highest id
        marks["the end of text"] = (made.eos_token_id, [text.eos_token_id])
    for mark, (given, read) in marks.items():
        if given is None or given not in read:
            raise UserError(
                f"the tokenizer of {folder} has the id {given} for {mark}, the text tower {read[0]}: it is of another "
                "model."
            )
    made.padding_side = "right"
    # RoBERTa counts positions from the one behind its padding.
    first = text.pad_token_id + 1 if config.model_type == "altclip" else 0
    most = int(text.max_position_embeddings) - first
    if context_length is not None and not 2 < context_length <= most:
        raise UserError(f"model.context_length is {context_length}: the text tower has {most} positions.")
    fixed = config.model_type == "siglip"  # which pads to all of its positions, as it was trained
    return HuggingFaceTokenizer(made, context_length or (most if fixed else min(most, int(made.model_max_length))))


@contextmanager
def _quiet() -> Iterator[None]:
    """Context without the library's remarks on configurations."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
