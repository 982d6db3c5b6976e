"""The documentation against the code: every command, option, setting, operation, step and state, and no other."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import typer.main

from tests.support.reference import OPERATIONS, ROOT, SETTINGS, operations_page, ours, settings_page
from worker.cli import catalogue
from worker.cli.arguments import request_of
from worker.cli.main import app
from worker.operations.catalogue import definition_of
from worker.operations.states import State
from worker.settings import PoolSettings, Settings

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
ALL_TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
GROUP = typer.main.get_group(app)
OPTIONS = {
    name: {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
    for name, command in GROUP.commands.items()
}

#: Commands in the documentation: lines of code blocks, and `vmops ...` in running text.
CODE = re.findall(r"^ {4}(.+)$", ALL_TEXT, re.MULTILINE) + "".join(
    re.findall(r"^```bash\n(.*?)^```", ALL_TEXT, re.DOTALL | re.MULTILINE)
).split("\n")
MENTIONED = [*CODE, *re.findall(r"`([^`\n]+)`", ALL_TEXT)]
LINES = sorted({re.split(r" [#&<|]", line)[0].strip() for line in MENTIONED if re.match(r"vmops (?!=)", line)})


def words_of(line: str) -> list[str]:
    """Return a command line's words behind `vmops` and its own options."""
    return [word for word in shlex.split(line.replace("...", "")) if word not in {"--debug", "vmops"}]


@pytest.fixture(scope="module")
def simulator_options() -> set[str]:
    helped = subprocess.run([sys.executable, "-m", "simulator", "--help"], capture_output=True, text=True, check=True)
    return set(re.findall(r"--[a-z][a-z-]*", helped.stdout))


def test_the_documentation_mentions_commands() -> None:
    assert len(LINES) > 10


@pytest.mark.parametrize("line", LINES)
def test_a_command_in_the_documentation_exists_with_its_options(line: str, simulator_options: set[str]) -> None:
    words = words_of(line)
    if words and words != ["--version"]:
        assert words[0] in GROUP.commands
        known = simulator_options if words[0] == "simulate" else OPTIONS[words[0]] | {"--help"}
        assert {word for word in words if word.startswith("--")} <= known


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("vmops submit ") and "=" in line])
def test_a_submitted_request_in_the_documentation_is_valid(line: str) -> None:
    words = [word for word in words_of(line) if not word.startswith("--")]
    if words[1] == "OPERATION":
        return
    _, name, *fields = words
    asked = catalogue.query_if_known(name) or catalogue.find_definition(name)
    assert request_of(name, asked.request, fields, lambda _: {"sealed": "x"})


def test_the_readme_has_every_command() -> None:
    assert {name for name in GROUP.commands if f"| `vmops {name}" not in README} == set()


def test_every_option_of_every_command_is_documented() -> None:
    own = {option for parameter in GROUP.params for option in parameter.opts} & {"--debug", "--version"}
    assert {option for option in own.union(*OPTIONS.values()) if option not in ALL_TEXT} == set()


def test_the_settings_page_is_the_code_s() -> None:
    assert SETTINGS.read_text(encoding="utf-8") == settings_page(), "run python -m tests.support.reference"
    for name in (*Settings.model_fields, *PoolSettings.model_fields):
        assert f"| `{name}` |" in settings_page()


def test_the_catalogue_page_is_the_code_s() -> None:
    page = OPERATIONS.read_text(encoding="utf-8")
    assert page == operations_page(page), "run python -m tests.support.reference"
    for entry in ours(catalogue.entries()):
        assert f"`{entry.task}`" in page
        if entry.kind == "operation":
            fields = definition_of(entry.task.removeprefix("vmops.")).request.model_fields
            assert {name for name in fields if f"| `{name}" not in page} == set()


def test_every_state_is_explained() -> None:
    page = OPERATIONS.read_text(encoding="utf-8")
    table = page[page.index("| state |") :].partition("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", table)) == set(State)


def test_every_page_is_linked_from_the_readme() -> None:
    pages = {str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md")}
    assert {page for page in pages if f"]({page})" not in README} == set()


def test_the_settings_file_of_the_readme_is_valid(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    match = re.search(r"```toml\n(.+?)```", README, re.DOTALL)
    assert match is not None
    (tmp_path / "lab.password").write_text("x")
    (tmp_path / "vmops.toml").write_text(match.group(1))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("VMOPS_CONFIG", raising=False)
    assert Settings().pool(None)[0] == "lab"
    assert tomllib.loads(match.group(1))["pools"]["lab"].keys() >= {"url", "fingerprints", "password_file"}
