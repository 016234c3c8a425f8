"""Zero-shot classifier: a dual encoder whose classes are texts (Radford et al. 2021).

Shapes: B images, C channels, D embedding, Y classes, P templates, T tokens.
"""

import hashlib
import json
import logging
from collections.abc import Sequence

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from robustcli.models.classifier import Classifier
from robustcli.models.dual_encoder import DualEncoder
from robustcli.models.network import PROMPT, digest, fingerprint
from robustcli.models.prompt import Prompt
from robustcli.models.text import cut_captions
from robustcli.models.tokenizer import WordTokenizer, split_words
from robustcli.utils.cache import cache_directory, unreadable, writing
from robustcli.utils.errors import UserError
from robustcli.utils.files import atomic
from robustcli.utils.rowwise import cosines

log = logging.getLogger(__name__)

SLOT = "{}"  # of a template, where the name of the class stands
_RECIPE = "class-weights-1"  # raise it when the same texts and weights would give other class weights
_TEXTS = 256  # in one pass of the text tower
_OF_NO_TOWER = ("visual", "logit_scale", "logit_bias", "text_decoder")


class ZeroShot(Classifier):
    """A dual encoder as a classifier: the logit of a class is ``scale * z(x) . t``.

    t, the class weight, is the mean over the templates of the unit embeddings of the class's texts, made unit again;
    z(x) is the unit embedding of an image, resized and normalised as by `DualEncoder`. Images of one channel are
    repeated for a network of three. Class weights are computed at their first use, cached on the disk, and follow
    weights of a text tower that are loaded later.

    Only the image tower trains: the text tower and the temperature are frozen here, in ``dual`` too, so that class
    weights are those of the texts in every step.

    Args:
        dual: the dual encoder; `save_weights` writes it as such.
        classes: Y names in the order of the logits.
        templates: P texts with ``{}``, where the name of a class stands.
        names: of the classes as the texts have them, in the order of ``classes``; None: those.
        origin: of the templates, in a word, for the foot of a table.
        allow_equal: take classes whose texts are equal, which no model can tell apart; the foot of a table says so.
            Published lists have some: two of ImageNet's classes are "missile", two "sunglasses".
        prompt: context vectors that stand in the place of templates; they alone train then.
        store: keep class weights on the disk; False for a copy of a text tower that is at every step another one.

    Attributes:
        dual, names, templates: as above.
        texts: Y times P texts.

    Raises:
        UserError: fewer than two classes, no template, one without ``{}``, another number of names than of classes, or
            two classes that the model reads as one.
    """

    _said: Tensor
    prompt: Prompt | None = None

    def __init__(
        self,
        dual: DualEncoder,
        classes: Sequence[str],
        *,
        templates: Sequence[str],
        names: Sequence[str] | None = None,
        origin: str = "",
        allow_equal: bool = False,
        prompt: Prompt | None = None,
        store: bool = True,
    ) -> None:
        super().__init__(
            dual.network,
            classes=classes,
            mean=dual.mean.flatten().tolist(),
            std=dual.std.flatten().tolist(),
            image_size=dual.image_size,
            description=dual.description,
        )
        self.dual, self.remarks, self.origin = dual, dual.remarks, origin
        self.names = tuple(classes if names is None else names)
        self.prompt, self.templates = prompt, tuple(templates) if prompt is None else (prompt.template,)
        _check(classes, self.names, self.templates)
        self.texts = tuple(tuple(each.replace(SLOT, name) for each in self.templates) for name in self.names)
        self._tokens = self._tokenized(allow_equal=allow_equal)
        # A buffer, so that a fingerprint over modules covers the texts.
        said = hashlib.sha256(json.dumps([self.classes, self.texts]).encode()).digest()
        self.register_buffer("_said", torch.tensor(list(said), dtype=torch.uint8), persistent=False)
        dual.set_trainable("image")
        if prompt is not None:
            prompt.install(dual, len(self.names))
        weights = dict(dual.network.named_parameters())
        self._text_weights = [weight for name, weight in weights.items() if _of_text(name)]
        for name, weight in weights.items():
            if not name.startswith("visual") or prompt is not None:
                weight.requires_grad_(name == PROMPT)
        self._class_features: Tensor | None = None
        self._versions: list[int] = []
        self._key, self._stored = "", store
        self.eval()

    @property
    def class_features(self) -> Tensor:
        """Class weights (Y,D) float32 of unit norm, on the device of the network; without gradients, but by the context
        vectors of a prompt that trains.
        """
        if self._context is not None and self._context.requires_grad and torch.is_grad_enabled():
            return self._encoded(self._tokens)
        # The counters of in-place changes: a few microseconds, where a hash of the weights takes a tenth of a second.
        versions = [weight._version for weight in self._text_weights]
        if self._class_features is None or versions != self._versions:
            with torch.inference_mode(False), torch.no_grad(), torch.autocast(self.device.type, enabled=False):
                self._update()
            self._versions = versions
        assert self._class_features is not None
        self._class_features = self._class_features.to(self.device)
        return self._class_features

    @property
    def scale(self) -> Tensor:
        """Factor of the cosines, a scalar: the inverse temperature, of a network with a logit bias without a ceiling.

        The sigmoid loss (Zhai et al. 2023) has no ceiling, and published scales of it stand above 100.
        """
        if self._bias is None:
            return self.dual.logit_scale
        scale: Tensor = self.network.logit_scale.exp().reshape(())  # type: ignore[operator]
        return scale

    @property
    def _bias(self) -> Tensor | None:
        bias: Tensor | None = getattr(self.network, "logit_bias", None)
        return bias

    @property
    def _context(self) -> Tensor | None:
        if self.prompt is None:
            return None
        context: Tensor = self.network.get_parameter(PROMPT)
        return context

    def features(self, images: Tensor) -> Tensor:
        """(B,C,H,W) in [0,1] -> unit embeddings (B,D) float32, differentiable; the range is not checked."""
        return self.dual.unchecked(self.coloured(images.to(self.device)))

    def logits_from(self, features: Tensor) -> Tensor:
        """Unit embeddings of images (B,D) -> logits (B,Y), differentiable in ``features``."""
        logits = self.scale * cosines(features, self.class_features)
        return logits if self._bias is None else logits + self._bias

    def unchecked(self, images: Tensor) -> Tensor:
        return self.logits_from(self.features(images)).float()

    def sized(self, images: Tensor) -> Tensor:
        return self.dual.sized(images)

    def train(self, mode: bool = True) -> "ZeroShot":
        """Train mode of the image tower alone; of nothing where a prompt trains.

        Raises:
            UserError: the text tower was made trainable, so that class weights would lag behind it.
        """
        if self.prompt is not None:
            super().train(False)
            return self
        if mode and any(weight.requires_grad for weight in self._text_weights):
            raise UserError(
                "the text tower of a zero-shot classifier stays as it is, since its class weights are computed once: "
                "train the image tower alone, model.trainable=image."
            )
        super().train(mode)
        return self

    def notes(self, height: int, width: int) -> list[str]:
        count, total = len(self.templates), len(self.names) * len(self.templates)
        shown = f"{count} template{'s' if count > 1 else ''}" + (f" ({self.origin})" if self.origin else "")
        told = [f"Zero-shot: {len(self.names)} classes in {shown}, such as {self.texts[0][0]!r}."]
        context = getattr(self.dual.tokenizer, "context_length", None)
        # A text has no more tokens than bytes, and two ends: most need not be tokenized again.
        long = [text for each in self.texts for text in each if context is None or len(text.encode()) + 2 > context]
        if cut := cut_captions(self.dual.tokenizer, long):
            told.append(f"{cut:,} of {total:,} class texts are cut at the context length.")
        return [*super().notes(height, width), *told, *self._unknown()]

    def fingerprint(self) -> str:
        """sha256 (hex) over weights and texts, of which the class weights are a function."""
        return hashlib.sha256(f"{fingerprint(self.network)} {bytes(self._said.tolist()).hex()}".encode()).hexdigest()

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, templates={len(self.templates)}"

    def _tokenized(self, *, allow_equal: bool) -> Tensor:
        """Tokens (Y,P,T) long of all texts; classes that have those of another are remarked, or a `UserError`."""
        rows = self.dual.tokenize([text for each in self.texts for text in each])
        tokens = rows.view(len(self.names), len(self.templates), -1)
        if self.prompt is not None:
            self._places = self.prompt.places(self.dual, tokens)
        seen: dict[bytes, str] = {}
        pairs = []
        for name, each in zip(self.names, tokens, strict=True):
            place = each.numpy().tobytes()
            pairs += [f"{seen[place]!r} and {name!r}"] if place in seen else []
            seen.setdefault(place, name)
        if pairs and not allow_equal:
            raise UserError(
                f"the model reads the texts of the classes {pairs[0]} as the same tokens, so that it cannot tell them "
                "apart: they are equal, or it does not know their words, or cuts them off; write them in others by "
                "class_names=[...], or choose a classifier, model=..."
            )
        if pairs:
            self.remarks = [
                *self.remarks,
                f"Classes whose texts are equal: {'; '.join(pairs)}.",
            ]
        return tokens

    def _update(self) -> None:
        """The class weights of the text tower as it is now: as before, from the cache, or computed."""
        state = {name: weight for name, weight in self.network.state_dict().items() if _of_text(name)}
        if self._context is not None:  # it changes from step to step: not worth a place on the disk
            self._class_features = self._encoded(self._tokens)
            return
        told = [_RECIPE, digest(state), self.dual.description, digest({"tokens": self._tokens}), self.device.type]
        key = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()
        if self._class_features is not None and key == self._key:
            return
        flags = [(module, module.training) for module in self.dual.modules()]
        self.dual.eval()
        try:
            self._class_features = self._cached(key) if self._stored else self._encoded(self._tokens)
        finally:
            for module, training in flags:
                module.training = training
        self._key = key

    def _cached(self, key: str) -> Tensor:
        place = cache_directory("class_weights") / f"{key}.safetensors"
        try:
            stored = load_file(place)["class_weights"].to(self.device) if place.exists() else None
        except PermissionError as error:
            raise unreadable(place) from error
        except (SafetensorError, OSError, KeyError) as error:
            log.warning("the class weights in %s are damaged and made anew: %s", place, error)
            stored = None
        # Weights alone say nothing of the code around them (an activation): the first class is compared.
        if stored is not None and stored.shape[0] == len(self._tokens):
            first = self._encoded(self._tokens[:1])
            if first.shape[1:] == stored.shape[1:] and torch.allclose(first, stored[:1], atol=1e-4):
                return stored
        made = self._encoded(self._tokens)
        with writing(place.parent), atomic(place) as temporary:
            save_file({"class_weights": made.cpu()}, temporary)
        return made

    def _encoded(self, tokens: Tensor) -> Tensor:
        """Tokens (Y,P,T) -> (Y,D): the mean of the unit embeddings over templates, made unit again."""
        rows = torch.split(torch.arange(tokens.shape[0] * tokens.shape[1]), _TEXTS)
        flat = tokens.flatten(0, 1)
        units = torch.cat([self.dual.encode_text(flat[each], self._vectors(flat[each], each)) for each in rows])
        return F.normalize(units.view(*tokens.shape[:2], -1).mean(1), dim=-1)

    def _vectors(self, tokens: Tensor, rows: Tensor) -> Tensor | None:
        """Embeddings (K,T,W) of the texts ``rows`` (K,), in which the context stands in its places; None: no prompt."""
        if self.prompt is None or self._context is None:
            return None
        embeddings = self.dual.token_embedding()(tokens.to(self.device))
        context = self._context if self.prompt.per_class else self._context.expand(len(self.names), -1, -1)
        places = self._places.flatten()[rows][:, None] + torch.arange(self.prompt.length)
        index = torch.arange(len(rows))[:, None].expand_as(places)
        owners = rows // self._tokens.shape[1]
        mixed: Tensor = embeddings.index_put((index, places), context[owners.to(self.device)].to(embeddings))
        return mixed

    def _unknown(self) -> list[str]:
        """A sentence on words of the class texts that the model's own vocabulary lacks: all of them are one token."""
        if not isinstance(self.dual.tokenizer, WordTokenizer):
            return []
        words = dict.fromkeys(word for each in self.texts for text in each for word in split_words(text))
        if self.prompt is not None:  # the words that give way to the context are not read
            words = dict.fromkeys(word for name in self.names for word in split_words(name))
        unknown = [word for word in words if word not in set(self.dual.tokenizer.words)]
        if not unknown:
            return []
        shown = ", ".join(unknown[:5]) + (", ..." if len(unknown) > 5 else "")
        return [f"The model does not know {len(unknown)} of the {len(words)} words of its class texts ({shown})."]


def _of_text(name: str) -> bool:
    """True for the name of a weight that the embedding of a text depends on."""
    return not name.startswith(_OF_NO_TOWER)


def _check(classes: Sequence[str], names: Sequence[str], templates: Sequence[str]) -> None:
    if len(classes) < 2:
        raise UserError(f"a zero-shot classifier has {len(classes)} classes: give at least two.")
    if len(names) != len(classes):
        raise UserError(
            f"class_names has {len(names)} names, but there are {len(classes)} classes: give one for each, in the "
            "order of the labels."
        )
    if not templates:
        raise UserError(f"templates is empty: give at least one text with {SLOT}, such as 'a photo of a {SLOT}.'.")
    for template in templates:
        if SLOT not in template:
            raise UserError(
                f"templates has {template!r} without {SLOT}, where the name of a class would stand: write it in, such "
                f"as 'a photo of a {SLOT}.'."
            )
