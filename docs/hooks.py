"""Pages of the site that are made of the code: commands and configuration from ``conf/``, and files of the root."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
CONF = ROOT / "conf"
_OF_ROOT = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md", "security.md": "SECURITY.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages."""
    from mkdocs.structure.files import File

    for name, text in pages():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links that lead out of ``docs/`` become links to the site's own pages, or plain text."""
    for name, source in _OF_ROOT.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{source}(#[^)]*)?\)", rf"](/{name}\1)", markdown)
    markdown = re.sub(r"\[([^\]]*)\]\((?:\.\./)+(?:conf|robustcli|benchmarks|README)[^)]*\)", r"\1", markdown)
    return markdown.replace("](docs/", "](/").replace("](/", f"]({'../' * page.file.src_uri.count('/')}")


def pages() -> Iterator[tuple[str, str]]:
    """Name and Markdown of each generated page."""
    for name, source in _OF_ROOT.items():
        yield name, (ROOT / source).read_text(encoding="utf-8")
    yield "reference/commands.md", commands()
    groups = sorted(path for path in CONF.iterdir() if path.is_dir() and path.name != "experiment")
    yield "reference/configuration.md", configuration(groups)
    for group in groups:
        yield f"reference/config/{group.name}.md", group_page(group)


def commands() -> str:
    """Every command with its summary and its own file, which holds every key and default."""
    lines = ["# Commands", "", "`robustcli COMMAND --help` has examples; `--cfg job` prints every key.", ""]
    for path in sorted(CONF.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        if path.stem == "common" or "_schema" not in text:
            continue
        lines += [f"## robustcli {path.stem.replace('_', '-')}", "", first_comment(text), "", *yaml(text)]
    return "\n".join(
        [*lines, "## Keys of every command", "", *yaml((CONF / "common.yaml").read_text(encoding="utf-8"))]
    )


def configuration(groups: list[Path]) -> str:
    """The groups with their choices."""
    lines = ["# Configuration", "", "A group is chosen by `GROUP=CHOICE`, a key set by `KEY=VALUE`.", ""]
    for group in groups:
        choices = ", ".join(f"`{path.stem}`" for path in sorted(group.glob("*.yaml")))
        lines += [f"## [{group.name}](config/{group.name}.md)", "", choices, ""]
    return "\n".join(lines)


def group_page(group: Path) -> str:
    """Every choice of a group: what it is, its keys and defaults."""
    lines = [f"# {group.name}=", ""]
    for path in sorted(group.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        lines += [f"## {path.stem}", "", first_comment(text), "", *yaml(text)]
    return "\n".join(lines)


def first_comment(text: str) -> str:
    """The first comment line that says what a file is."""
    said = (line[1:].strip() for line in text.splitlines() if line.startswith("#") and "@package" not in line)
    return next(said, "")


def yaml(text: str) -> list[str]:
    """A file as a block of code."""
    return ["```yaml", text.rstrip(), "```", ""]
