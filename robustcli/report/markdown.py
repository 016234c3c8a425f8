"""``report.md``: what a run did and found, with its tables, pictures, threat model and provenance on one page."""

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from robustcli.report.tables import Grid, as_markdown


@dataclass(frozen=True)
class Report:
    """What stands in a report.

    Attributes:
        title: one line.
        summary: what was found, in a sentence or two; may be empty.
        threat: what the attacks may do, a sentence each; see :func:`threat_model`.
        tables: in the order in which they are read.
        figures: caption and picture of each.
        caveats: what the numbers do not say, a sentence each.
    """

    title: str
    threat: Sequence[str]
    summary: str = ""
    tables: Sequence[Grid] = ()
    figures: Sequence[tuple[str, Path]] = ()
    caveats: Sequence[str] = field(default_factory=tuple)


def render(report: Report, manifest: Mapping[str, Any], directory: Path) -> str:
    """The report as Markdown that stands in ``directory``: pictures are named relative to it.

    Args:
        report: the content.
        manifest: of the run; gives the command and the provenance.
        directory: where the text will stand.
    """
    lines = [f"# {report.title}", ""]
    lines += [report.summary, ""] if report.summary else []
    lines += ["```", command_line(manifest), "```", ""]
    for grid in report.tables:
        lines += [as_markdown(grid)]
    for caption, picture in report.figures:
        lines += [f"![{caption}]({_relative(picture, directory)})", "", f"*{caption}*", ""]
    lines += _section("Threat model", report.threat)
    lines += _section("Caveats", report.caveats)
    lines += ["## Provenance", "", "| | |", "| :-- | :-- |"]
    lines += [f"| {key} | {value} |" for key, value in provenance(manifest).items()]
    return "\n".join(lines) + f"\n\nRebuild and compare: `robustcli rerun {shlex.quote(str(directory))}`\n"


def command_line(manifest: Mapping[str, Any]) -> str:
    """What one types to get this run; for a job of a sweep the job alone."""
    return shlex.join(["robustcli", manifest["command"], *manifest["overrides"]])


def threat_model(
    *,
    norm: str | None = None,
    eps: str | float | None = None,
    max_words: int | None = None,
    max_characters: int | None = None,
    captions: bool = True,
    knows: str = "all weights",
) -> list[str]:
    """The budget in words: what may change in an image and in a caption (None: nothing), and what the attacker knows.

    Args:
        norm: ``linf`` or ``l2``, on pixels in [0, 1].
        eps: as written in the config, for example ``4/255``; None: any, and how little it takes is what is measured.
        max_words: words of a caption that may be replaced.
        max_characters: characters of a caption that may be replaced, put in or left out.
        captions: the data set has captions.
        knows: what of the model the attacker sees.
    """
    if norm is not None and norm not in ("linf", "l2"):
        raise ValueError(f"norm is {norm!r}, expected linf or l2")
    image = {
        "linf": f"Each pixel value of an image, in [0, 1], may change by at most {eps} (L-inf).",
        "l2": f"An image, with pixel values in [0, 1], may change by at most {eps} in all (L2 norm).",
    }
    any_size = {"linf": "largest change of a pixel value", "l2": "L2 norm of the change"}
    if norm is not None and eps is None:
        image[norm] = f"An image may change by any amount: the smallest is looked for, by the {any_size[norm]}."
    edits = "Captions are not changed."
    if max_words:
        edits = f"At most {max_words} word{'s' if max_words != 1 else ''} of a caption may be replaced."
    if max_characters:
        plural = "s" if max_characters != 1 else ""
        edits = f"At most {max_characters} character{plural} of a caption may be replaced, put in or left out."
    return [
        "Images are not changed." if norm is None else image[norm],
        *([edits] if captions else []),
        f"The attacker knows {knows}, and every result is judged again on what the attack put out.",
    ]


def provenance(manifest: Mapping[str, Any]) -> dict[str, str]:
    """The lines of the manifest that a reader needs to trust or to rebuild a number."""
    code, machine, torch = manifest["code"], manifest["machine"], manifest["torch"]
    commit = "not from a git tree" if code["commit"] is None else code["commit"][:12]
    state = ", with changes that are not committed" if code["dirty"] else ""
    lines = {
        "code": f"robustcli {code['version']}, {commit}{state}, sources sha256 {code['sha256'][:12]}",
        "packages": ", ".join(f"{name} {version}" for name, version in manifest["packages"].items() if version),
        "machine": f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['platform']}",
        "torch": f"{manifest['device']}, {torch['threads']} threads, {torch['cpu_capability']}",
        "seeds": ", ".join(f"{key} {value}" for key, value in manifest["seeds"].items()) or "none",
        "started": str(manifest["start"]),
        "phases": ", ".join(f"{name} {seconds:.1f} s" for name, seconds in manifest["phases"].items()) or "none",
    }
    if torch.get("cuda_device"):
        lines["torch"] += f", {torch['cuda_device']} (CUDA {torch['cuda']})"
    resumed = len(manifest["sessions"]) - 1
    lines |= {"resumed": f"{resumed} times"} if resumed else {}
    hashes = {key: manifest[key] for key in ("data_fingerprint", "data", "weights") if key in manifest}
    return lines | {key.replace("_", " "): _hashes(value) for key, value in hashes.items()}


def _section(title: str, sentences: Sequence[str]) -> list[str]:
    return [f"## {title}", "", *(f"- {sentence}" for sentence in sentences), ""] if sentences else []


def _relative(path: Path, directory: Path) -> str:
    return Path(os.path.relpath(path, directory)).as_posix().replace(" ", "%20")


def _hashes(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_hashes(each)}" for key, each in value.items())
    return str(value)[:16]
