"""README says what is true: its tree is the repository's, its commands exist."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import click
import pytest

from flows.cli import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every `fucina` line that README tells to type."""
    lines = [line for block in blocks("console") + blocks("bash") for line in block.splitlines()]
    typed = [line.removeprefix("$ ") for line in lines if "fucina " in line.split("#")[0]]
    return [line[line.index("fucina ") :].split("#")[0] for line in typed if is_command(line)]


def is_command(line: str) -> bool:
    return re.match(r"(\w+=\S+ )*(\.venv/bin/)?fucina ", line) is not None


def test_the_tree_is_the_repository() -> None:
    (tree,) = [block for block in blocks("text") if "pyproject.toml" in block]
    listed: list[str] = []
    folder = ""
    for line in tree.splitlines():
        name, _, words = line.strip().partition(" ")
        assert words.strip(), f"no word on {name}"
        if name.endswith("/") and not line.startswith(" "):
            folder = name
        else:
            listed.append(folder + name if line.startswith(" ") else name)
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout, so there is no list of files to compare with")
    files = [f for f in tracked.stdout.split() if not f.endswith("__init__.py")]
    assert sorted(listed) == sorted(files)


def test_the_two_commands_come_first() -> None:
    assert blocks("bash")[0].split("\n")[0].startswith("make run")
    assert blocks("bash")[0].split("\n")[1].startswith("make test")


@pytest.mark.parametrize("line", commands())
def test_a_command_exists_with_its_options(line: str) -> None:
    words = shlex.split(line)[1:]
    command = cli.commands[words[0]]
    with click.Context(command) as context:
        command.make_parser(context).parse_args(words[1:])


def test_readme_has_commands() -> None:
    assert len(commands()) >= 8
