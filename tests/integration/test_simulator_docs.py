"""docs/simulator.md does what it says: its examples are run as they are printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.faults import _EFFECTS
from simulator.testing import plugin, process
from tests.integration.test_cli_quickstart import SCRIPT
from tests.support.compose import ROOT
from worker.cli.embedded import free_port

pytest_plugins = ["pytester"]

PAGE = (ROOT / "docs" / "simulator.md").read_text(encoding="utf-8")
ADDRESS = "127.0.0.1:8080"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


TESTS = [block for block in blocks("python") if "def test_" in block]


def name_of(block: str) -> str:
    match = re.search(r"def (test_\w+)", block)
    assert match is not None
    return match.group(1)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_the_worked_example_prints_what_the_page_says(tmp_path: Path) -> None:
    (shell,) = blocks("bash")
    (example,) = (block for block in blocks("python") if "def test_" not in block)
    address = f"127.0.0.1:{free_port()}"
    (tmp_path / "example.py").write_text(example.replace(ADDRESS, address), encoding="utf-8")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("vmops", "-m worker.cli "), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {arguments}"$@"\n')
        (commands / name).chmod(0o755)
    done = subprocess.run(
        ["bash", "-c", SCRIPT.format(lines=shell.replace(ADDRESS, address))],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    printed = re.search(r"^```\n\n((?:    .*\n)+)", PAGE, re.MULTILINE)
    assert printed is not None
    assert re.sub(r"^    ", "", printed.group(1), flags=re.MULTILINE) in done.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("block", TESTS, ids=name_of)
def test_an_example_passes_as_it_is_printed(pytester: pytest.Pytester, block: str) -> None:
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(block)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "simulator.testing")
    result.assert_outcomes(passed=len(re.findall(r"^ *def test_", block, re.MULTILINE)))


def test_every_command_of_the_control_plane_has_an_example() -> None:
    (commands,) = (block for block in TESTS if "def test_every_command(" in block)
    source = (ROOT / "simulator/control.py").read_text(encoding="utf-8")
    routes = re.findall(r'\("(GET|POST|DELETE)", "(\w+)"\): self\.', source)
    assert len(routes) > 10
    missing = [
        f"{method} {path}" for method, path in routes if not re.search(rf'control\("{method}", f?"{path}[/"]', commands)
    ]
    assert missing == []


def test_every_effect_of_a_fault_has_an_example() -> None:
    (faults,) = (block for block in TESTS if "class TestFaults" in block)
    assert {effect for effect in _EFFECTS if f'effect="{effect}"' not in faults} == set()


def test_every_fixture_and_method_is_named() -> None:
    fixtures = [name for name in vars(plugin) if name.endswith(("_pool", "_pools"))]
    assert len(fixtures) == 4
    assert [name for name in fixtures if f"`{name}`" not in PAGE] == []
    internal = {"close", "connect", "pid"}
    methods = {name for name in vars(process.PoolProcess) if not name.startswith("_")} - internal
    words = set(re.findall(r"\w+", PAGE))
    assert methods - words == set()
