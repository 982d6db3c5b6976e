"""What docker-compose.yml and the Dockerfile say, in a form that tests can ask."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text(encoding="utf-8"))
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]

#: The services that run our own image.
OURS = sorted(name for name, service in SERVICES.items() if "build" in service)


@dataclass(frozen=True)
class Instruction:
    """One line of a Dockerfile, its continuations joined."""

    keyword: str
    text: str

    @property
    def words(self) -> list[str]:
        """The arguments that are not options."""
        return [word for word in shlex.split(self.text) if not word.startswith("--")]


def dockerfile() -> list[list[Instruction]]:
    """Return the instructions of each stage, in order."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8"))
    stages: list[list[Instruction]] = []
    for line in text.splitlines():
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        keyword, _, rest = line.strip().partition(" ")
        if keyword == "FROM":
            stages.append([])
        stages[-1].append(Instruction(keyword, rest.strip()))
    return stages


def copied_from_repository(stage: list[Instruction]) -> list[tuple[str, str]]:
    """Return (source, destination) of each COPY that takes files of the repository."""
    copies = [entry for entry in stage if entry.keyword == "COPY" and "--from=" not in entry.text]
    return [(source, entry.words[-1]) for entry in copies for source in entry.words[:-1]]


def is_ignored(path: str) -> bool:
    """Tell whether .dockerignore keeps a path out of the build; the last pattern that matches wins."""
    ignored = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!").strip("/")
        regex = re.escape(pattern).replace(r"\*\*/", "(?:.*/)?").replace(r"\*", "[^/]*")
        if re.fullmatch(f"{regex}(?:/.*)?", path.strip("/")):
            ignored = not line.startswith("!")
    return ignored


def option(command: list[str], name: str) -> str:
    """Return the value of an option of a command, written `--name value` or `--name=value`."""
    for position, word in enumerate(command):
        if word == name:
            return command[position + 1]
        if word.startswith(f"{name}="):
            return word.partition("=")[2]
    raise KeyError(name)


def health_check_of(service: str) -> list[str]:
    """Return a health check's words, its marker left out; a shell's text is split at spaces, `$$` undone."""
    kind, *words = SERVICES[service]["healthcheck"]["test"]
    return words if kind == "CMD" else shlex.split(words[0].replace("$$", "$"))
