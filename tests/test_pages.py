"""The README pages: links, paths and commands in them are real, and lines are short."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page
    for folder in ("", "nas_mnist", "reports", "studies", "tests")
    for page in (ROOT.glob("README.md") if not folder else (ROOT / folder).rglob("README.md"))
)
# Values for the placeholders of a page, so that a command line can be parsed.
PLACEHOLDERS = {
    "N": "1", "FILE": "x.json", "FILE.json": "x.json", "FILE.csv": "x.csv", "DIR": ".", "FOLDER": "reports",
    "FORMAT": "torch", "MINUTES": "1", "BYTES": "1000", "SIZE": "32KB", "auto|torch": "torch",
}  # fmt: skip


def names(pages: list[Path]) -> list[str]:
    return [str(page.relative_to(ROOT)) for page in pages]


def commands(page: Path) -> Iterator[str]:
    """Command lines of the package, in code blocks and in backticks."""
    text = page.read_text().replace("\\\n", " ")
    for line in re.findall(
        r"(?:^|&& |`)\s*(?:\S*/)?python (-m nas_mnist[^`\n#&]*)", text, flags=re.MULTILINE
    ):
        yield line.strip()


def test_there_is_a_page_for_every_room() -> None:
    rooms = {path.parent.name for path in (ROOT / "nas_mnist").glob("*/__init__.py")}
    assert {page.parent.name for page in PAGES if page.parent.parent.name == "nas_mnist"} == rooms
    assert len(PAGES) > len(rooms)


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_lines_are_short(page: Path) -> None:
    long = [number for number, line in enumerate(page.read_text().splitlines(), 1) if len(line) > 120]
    assert long == []


def test_the_first_page_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 170


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r'src="([^"]+)"', text)
    relative = [target for target in targets if "://" not in target]
    assert [target for target in relative if not (page.parent / target).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_paths_exist(page: Path) -> None:
    """Names in backticks that begin with a folder of the repository, and files named in a room's table."""
    text = page.read_text()
    found = re.findall(r"`((?:nas_mnist|tests|reports)/[\w./-]+)`", text)
    made_by_commands = re.compile(r"reports/(first|NAME|STUDY|nas_mnist)\b")
    missing = [path for path in found if not made_by_commands.match(path) and not (ROOT / path).exists()]
    own = re.findall(r"^\| `([\w/]+\.(?:py|toml|j2|json))`", text, flags=re.MULTILINE)
    missing += [name for name in own if not ((page.parent / name).exists() or (ROOT / name).exists())]
    assert missing == []


@pytest.mark.parametrize("line", sorted({line for page in PAGES for line in commands(page)}))
def test_command_lines_are_accepted(line: str, tmp_path: Path, monkeypatch: Any) -> None:
    """Commands, options and values pass the command's own parsers; nothing is run."""
    monkeypatch.chdir(tmp_path)
    words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line.replace("[", "").replace("]", ""))]
    module, words = words[1].removeprefix("nas_mnist").lstrip("."), words[2:]
    if not module:  # the list of commands
        return
    package = ROOT / "nas_mnist" / module
    door = importlib.import_module(f"nas_mnist.{module}" + (".__main__" if package.is_dir() else ""))
    function = getattr(door, module)
    if words and words[0] in getattr(door, "SUBCOMMANDS", {}):
        function = door.SUBCOMMANDS[words.pop(0)]
    app = typer.Typer()
    app.command()(function)
    words = [word for word in words if word not in ("--help", "--list")]
    command = typer.main.get_command(app)
    required = [one.name for one in command.params if one.param_type_name == "argument" and one.required]
    missing_allowed = not words  # a bare mention of the command
    if not (required and missing_allowed):
        command.make_context(module, words)
