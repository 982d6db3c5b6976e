"""Writes what the documentation repeats of the code: `python -m tests.support.reference`.

docs/settings.md as a whole, and the catalogue in docs/operations.md below its mark. A test compares them with the code.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from worker.cli import catalogue
from worker.cli.catalogue import Entry, Field
from worker.operations.catalogue import definition_of
from worker.operations.query import query_of
from worker.settings import PoolSettings, Settings

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "docs" / "settings.md"
OPERATIONS = ROOT / "docs" / "operations.md"
MARK = "<!-- from here on: python -m tests.support.reference -->"

_SETTINGS_HEAD = """# Settings

<!-- The whole page: python -m tests.support.reference -->

Read from the environment, then from the file that `VMOPS_CONFIG` names (default `vmops.toml` in the working folder);
what is found first wins. A setting `lease_ttl_s` is `lease_ttl_s = 20` in the file and `VMOPS_LEASE_TTL_S=20` in the
environment; one of the pool `lab` is `url` below `[pools.lab]` and `VMOPS_POOLS__LAB__URL`. Names that end in `_s` are
seconds. Unknown names in the file are refused, and `vmops doctor` tells variables that are nearly settings. Worker,
beat, clients and the command read the same settings.

Secrets belong into files: `password_file`, `image_store_token_file`, `secret_key_file`.
"""


def settings_page() -> str:
    """Return docs/settings.md."""
    settings = catalogue.fields_of(Settings.model_json_schema())
    pool = catalogue.fields_of(PoolSettings.model_json_schema())
    parts = [
        _SETTINGS_HEAD,
        *_table("setting", settings),
        "",
        "## A pool: `[pools.NAME]`",
        "",
        *_table("setting", pool),
    ]
    return "\n".join(parts) + "\n"


def operations_page(now: str) -> str:
    """Return docs/operations.md: what is written by hand, then the catalogue."""
    head, mark, _ = now.partition(MARK)
    if not mark:
        raise ValueError(f"{OPERATIONS} has lost its mark: {MARK}")
    return f"{head}{MARK}\n\n" + "\n".join(_catalogue(ours(catalogue.entries()))) + "\n"


def ours(entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries of the product: a test process may know operations of tests, too."""
    found = list(entries)
    foreign = {entry.task for entry in found if not _module_of(entry).startswith("tasks.")}
    return [entry for entry in found if not any(f"{entry.task}.".startswith(f"{name}.") for name in foreign)]


def _module_of(entry: Entry) -> str:
    """Return where an operation or query is declared; the others go with theirs, or are ours."""
    name = entry.task.removeprefix("vmops.")
    if entry.kind == "operation":
        return definition_of(name).steps[0].run.__module__
    return query_of(name).body.__module__ if entry.kind == "query" else "tasks."


def _catalogue(entries: Sequence[Entry]) -> Iterator[str]:
    by_name = {entry.task: entry for entry in entries}
    yield "## Operations"
    for entry in entries:
        if entry.kind == "operation":
            yield from _operation(entry, by_name)
    queries = [entry for entry in entries if entry.kind == "query"]
    if queries:
        yield from ("", "## Queries")
    for entry in queries:
        yield from _head(entry)
        yield from _table("field", catalogue.fields_of(entry.request))
    yield ""
    yield "## What beat runs"
    yield ""
    yield "| task | what it does | arguments |"
    yield "|---|---|---|"
    for entry in entries:
        if entry.kind == "periodic":
            arguments = ", ".join(f"`{one.name}`: {one.type}" for one in catalogue.fields_of(entry.request)) or "none"
            yield f"| `{entry.task}` | {entry.summary} | {arguments} |"


def _head(entry: Entry) -> Iterator[str]:
    yield from ("", f"### `{entry.task}`", "", f"{entry.summary[0].upper()}{entry.summary[1:]}", "")
    yield f"    {catalogue.command_line(entry)}"
    yield from ("", f"Keyword arguments of the task: `{json.dumps(dict(entry.example))}`", "")


def _operation(entry: Entry, by_name: dict[str, Entry]) -> Iterator[str]:
    undos = [one for one in by_name.values() if one.kind == "undo" and one.task.startswith(f"{entry.task}.")]
    yield from _head(entry)
    yield from _table("field", catalogue.fields_of(entry.request))
    yield from ("", "| step | what it does |", "|---|---|")
    for name in entry.steps:
        yield f"| `{name}` | {by_name[name].summary} |"
    for undo in undos:
        yield f"| `{undo.task}` (undo) | {undo.summary} |"


def _table(heading: str, fields: Iterable[Field]) -> Iterator[str]:
    yield f"| {heading} | type | default | meaning |"
    yield "|---|---|---|---|"
    for one in fields:
        default = f"`{one.default}`" if one.default and one.default != "required" else one.default
        yield f"| `{one.name}` | {one.type} | {default} | {one.description} |"


def main() -> None:
    """Write both pages."""
    SETTINGS.write_text(settings_page(), encoding="utf-8")
    OPERATIONS.write_text(operations_page(OPERATIONS.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
