"""What the documentation names exists: targets, markers, variables, files, links."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from tests.support.compose import ROOT
from worker.settings import PoolSettings, Settings

PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
BESIDE = [ROOT / "dom0" / "README.md", ROOT / "benchmarks" / "README.md"]
CHECKED = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
#: Markers of what `make test` leaves out, in the order of its option.
TIERS = ("glance", "rabbitmq", "browser", "clients", "matrix", "packets")
TARGETS = set(re.findall(r"^([a-z-]+):", MAKEFILE, re.MULTILINE))
PYTEST = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["pytest"]["ini_options"]
MARKERS = {marker.partition(":")[0] for marker in PYTEST["markers"]}

#: Variables that are read beside the settings.
OTHER_VARIABLES = {"VMOPS_CONFIG", "VMOPS_DOM0_ROOT"}


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


@CHECKED
def test_a_make_target_in_the_documentation_exists(page: Path) -> None:
    assert set(re.findall(r"`make ([a-z-]+)|^ +make ([a-z-]+)", text_of(page), re.MULTILINE)) <= {
        pair for target in TARGETS for pair in ((target, ""), ("", target))
    }


@CHECKED
def test_a_variable_in_the_documentation_is_a_setting(page: Path) -> None:
    for variable in set(re.findall(r"\bVMOPS_[A-Z_0-9]+\b", text_of(page))) - OTHER_VARIABLES:
        field, *nested = variable.removeprefix("VMOPS_").lower().split("__")
        assert field in Settings.model_fields, variable
        assert not nested or nested[-1] in PoolSettings.model_fields, variable


@CHECKED
def test_a_path_in_the_documentation_exists(page: Path) -> None:
    mentioned = re.findall(
        r"`((?:worker|tasks|simulator|tests|benchmarks|docs|config|\.ci)/[\w./*-]*|(?!vmops\.\w+\.)[\w.-]+\.(?:toml|lock|yml))`",
        text_of(page),
    )
    missing = [
        path
        for path in mentioned
        if not path.startswith("config/secrets/") and path != "vmops.toml" and not list(ROOT.glob(path.strip("/")))
    ]
    assert missing == []


@pytest.mark.parametrize("page", [*PAGES, *BESIDE], ids=lambda page: str(page.relative_to(ROOT)))
def test_a_link_in_the_documentation_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text_of(page))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []


@CHECKED
def test_the_documentation_has_no_path_of_one_machine(page: Path) -> None:
    assert not re.search(r"/root/|/home/(?!vmops)|/Users/", text_of(page))


def test_every_target_and_marker_is_described() -> None:
    testing = text_of(ROOT / "docs" / "testing.md")
    tiers = {target for target in TARGETS if target.startswith("test-")} | {"test", "lint", "bench", "lock"}
    assert {target for target in tiers if f"make {target}" not in testing} == set()
    assert {marker for marker in MARKERS if f"| `{marker}` |" not in testing} == set()


def test_every_tier_with_a_target_is_left_out_of_the_default_run() -> None:
    default = PYTEST["addopts"][PYTEST["addopts"].index("-m") + 1]
    opt_in = {target.removeprefix("test-") for target in TARGETS if target.startswith("test-")}
    assert opt_in <= MARKERS
    assert default == " and ".join(f"not {marker}" for marker in TIERS)
    assert opt_in == set(TIERS)


def test_make_help_lists_every_target() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    listed = subprocess.run(["make", "help"], cwd=ROOT, env=env, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == TARGETS


def test_decisions_are_numbered_and_say_context_choice_and_price() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:3] for page in decisions] == [f"{number:03}" for number in range(1, len(decisions) + 1)]
    for page in decisions:
        text = text_of(page)
        assert text.startswith(f"# {page.name[:3]}: ")
        assert [heading in text for heading in ("**Context.**", "**Choice.**", "**Price.**")] == [True] * 3
        assert len(text.splitlines()) <= 20, page.name


def test_the_changelog_begins_with_what_is_unreleased() -> None:
    headings = re.findall(r"^## (.+)$", text_of(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert all(re.fullmatch(r"\d+\.\d+\.\d+ - \d{4}-\d\d-\d\d", heading) for heading in headings[1:])
