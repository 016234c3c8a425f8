"""Texts of classes for image-text models: templates and names, of the set itself, of the field's lists or the user's.

The field's lists are read from the packages that publish them, open_clip and clip-benchmark.
"""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from robustcli.data.classes import class_list, listed
from robustcli.utils.errors import UserError
from robustcli.utils.suggest import did_you_mean

SLOT = "{}"  # where the name of a class stands
_OWN = {"simple": ("a photo of a {}.",), "tecoa": ("This is a photo of a {}",)}  # the latter of Mao et al. 2023
_WORDS = ("imagenet80", *_OWN, "dataset")
_FILES = (".txt", ".json")
PROMPT = ".safetensors"  # of a file that holds context vectors in place of templates


class Classes(Protocol):
    """Protocol of a data set with classes, see `ImageClassData`: what their texts are made from."""

    name: str
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    benchmark: str | None


@dataclass(frozen=True)
class ClassTexts:
    """Names of the classes, in the order of the labels, and templates with ``{}``.

    Attributes:
        origin: of the templates, for the foot of a table.
        published: the names are a published list, which may have two that are equal.
        prompt: file of context vectors that were learnt, which stand in the place of the templates.
    """

    names: tuple[str, ...]
    templates: tuple[str, ...]
    origin: str
    published: bool = False
    prompt: Path | None = None


def class_texts(data: Classes, templates: Any = None, names: Any = None) -> ClassTexts:
    """The texts of the classes of ``data``.

    Args:
        templates: ``imagenet80`` (Radford et al. 2021), ``simple``, ``tecoa``, ``dataset`` (those of the set itself, or
            of clip-benchmark for its name), the name of a set of clip-benchmark, one text with ``{}``, a list of such,
            or a file (a JSON list, one a line, or a learnt prompt, ``.safetensors``). None: those of the set itself,
            else ``simple``.
        names: a list, a file, ``imagenet`` (open_clip's), ``dataset`` (clip-benchmark's for the set, where they are as
            many as its classes) or a set of clip-benchmark; None: ``data.classes``.

    Raises:
        UserError: an unknown word, no such file, a missing package, or another number of names than of classes.
    """
    prompt = Path(templates).expanduser() if str(templates).endswith(PROMPT) else None
    origin, chosen = (prompt.name, (SLOT,)) if prompt is not None else _templates(data, templates)
    known, published = _names(data, names)
    if len(known) != len(data.classes):
        raise UserError(
            f"class_names has {len(known)} names, but {data.name} has {len(data.classes)} classes: give one for each, "
            "in the order of the labels."
        )
    for template in chosen:
        if SLOT not in template:
            raise UserError(
                f"templates has {template!r} without {SLOT}, where the name of a class would stand: write it in, such "
                f"as 'a photo of a {SLOT}.'."
            )
    return ClassTexts(known, chosen, origin, published, prompt)


def _templates(data: Classes, given: Any) -> tuple[str, tuple[str, ...]]:
    """Where the templates are from, and the templates."""
    if given is None:
        given = "dataset" if data.templates else "simple"
    if isinstance(given, Sequence) and not isinstance(given, str):
        if not given:
            raise UserError(f"templates is empty: give at least one text with {SLOT}, such as 'a photo of a {SLOT}.'.")
        return "given", tuple(str(each) for each in given)
    if not isinstance(given, str | Path):
        raise UserError(f"templates is {given!r}: expected {', '.join(_WORDS)}, texts with {SLOT} or a file.")
    word = str(given)
    if word == "imagenet80":
        from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

        return word, tuple(template(SLOT) for template in OPENAI_IMAGENET_TEMPLATES)
    if word in _OWN:
        return word, _OWN[word]
    if word == "dataset" and data.templates:
        return f"of {data.name}", data.templates
    if SLOT in word and not word.endswith(_FILES):
        return "given", (word,)
    if word.endswith(_FILES):
        return Path(word).name, tuple(listed(word, "templates"))
    name = data.benchmark or data.name if word == "dataset" else word
    found = _published("templates", name, word)
    return f"of {name}, clip-benchmark", tuple(each.replace("{c}", SLOT) for each in found)


def _names(data: Classes, given: Any) -> tuple[tuple[str, ...], bool]:
    """The names of the classes, and True for those of a published list."""
    if given is None:
        return data.classes, False
    if given == "imagenet":
        from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

        return tuple(IMAGENET_CLASSNAMES), True
    if given == "dataset":
        name = data.benchmark or data.name
        found = _lists("class_names", name, given).get(name, ())  # of many sets it has templates alone
        return (tuple(found), True) if len(found) == len(data.classes) else (data.classes, False)
    if isinstance(given, str) and not given.endswith(_FILES):
        return tuple(_published("class_names", given, given)), True
    return class_list(given, "class_names", "give a list, a file, or imagenet."), False


_FILE = {"templates": "en_zeroshot_classification_templates.json", "class_names": "en_classnames.json"}


def _published(key: str, name: str, word: str) -> list[str]:
    """Templates or class names of a set of clip-benchmark."""
    content = _lists(key, name, word)
    if name not in content:
        choices = _choices(key)
        close = "" if word == "dataset" else did_you_mean(name, [*choices, *content])
        raise UserError(
            f"{key} is {word!r}, but clip-benchmark has none of {name}: choose {', '.join(choices)}, a list, a "
            f"file (.txt, .json), or a set of {', '.join(content)}{close or '.'}"
        )
    return content[name]


def _lists(key: str, name: str, word: str) -> dict[str, list[str]]:
    """Templates or class names by set, where clip-benchmark has any, of which its JSON file alone is read."""
    package = importlib.util.find_spec("clip_benchmark")
    if package is None or package.origin is None:
        close = "" if word in _choices(key) else did_you_mean(word, _choices(key))
        raise UserError(
            f"{key} is {word!r}: choose {', '.join(_choices(key))}, a list or a file (.txt, .json); lists of other "
            f"sets come with `pip install 'robustcli[zero-shot]'`{close or '.'}"
        )
    # By its place: an import of its data sets would ask for packages that no list needs.
    content = json.loads(Path(package.origin).with_name("datasets").joinpath(_FILE[key]).read_text(encoding="utf-8"))
    return {each: values for each, values in content.items() if values}


def _choices(key: str) -> list[str]:
    """The words that ``key`` may be."""
    return list(_WORDS) if key == "templates" else ["imagenet", "dataset"]
