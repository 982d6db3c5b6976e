"""The tables that `vmops operations`, `show` and `tasks` print."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.cli import catalogue, view
from worker.cli.doctor import Finding
from worker.operations.catalogue import Definition
from worker.operations.record import Record
from worker.operations.states import FINAL, State

#: Columns that a row for each operation needs.
_WIDE = 150


def _table(*headings: str) -> Table:
    """Return a table; a heading that ends in `!` is of a column that is never broken."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading.removesuffix("!"), overflow="fold", no_wrap=heading.endswith("!"))
    return table


@dataclass(frozen=True)
class OperationsList:
    """Operations as `vmops operations` shows them: one a row, in a narrow terminal one in two lines."""

    records: Sequence[Record]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """Draw them."""
        if options.max_width >= _WIDE:
            yield self._table()
        else:
            yield from map(self._lines, self.records)

    def _table(self) -> Table:
        table = _table("id!", "operation!", "instance", "state!", "step", "progress!", "submitted!", "error")
        for record in self.records:
            table.add_row(
                record.id,
                record.name,
                record.label,
                _state(record),
                _step_of(record),
                f"{record.progress:.0f} %",
                view.local_time(record.created_at),
                record.error["message"] if record.error else "",
            )
        return table

    def _lines(self, record: Record) -> Group:
        state = _state(record)
        state.pad_right(max(0, 10 - len(state)))
        times = f"{record.progress:4.0f} %  {view.local_time(record.created_at)}"
        detail = record.error["message"] if record.error else _step_of(record)
        told = Text.assemble((view.title_of(record), "bold"), f": {detail}" if detail else "")
        return Group(Text.assemble(record.id, "  ", state, times), Padding(told, (0, 0, 0, 2)))


def _state(record: Record) -> Text:
    return Text(str(record.state), style=view.STATE_STYLES.get(record.state, "cyan"))


def _step_of(record: Record) -> str:
    """Return where an operation stands, and what it waits for there."""
    if record.state is State.SUCCEEDED:
        return ""
    return f"{record.step} ({record.wait['reason']})" if record.wait else record.step


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return what `vmops doctor` found, and what to do about it."""
    table = _table("!", "part!", "", "found", "what to do")
    marks = {"good": Text("ok", style="green"), "note": Text("note", style="yellow"), "bad": Text("!!", style="red")}
    for one in findings:
        table.add_row(marks[one.level], one.part, one.what, Text(one.text), Text(one.advice))
    return table


def operation_details(record: Record, definition: Definition | None, now_ms: int) -> Group:
    """Return everything that matters about one operation."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column()
    facts.add_column(overflow="fold")
    began = record.started_at or record.created_at
    taken = view.duration(((record.ended_at or now_ms) - began) / 1000) if began else ""
    rows: list[tuple[str, Any]] = [
        ("operation", Text(view.title_of(record), style="bold")),
        ("id", record.id),
        ("pool", record.pool),
        ("state", _state(record)),
        ("progress", f"{record.progress:.1f} %"),
        ("submitted", view.local_time(record.created_at)),
        ("ended", f"{view.local_time(record.ended_at)} after {taken}") if record.ended_at else ("so far", taken),
        ("request", json.dumps(_given(view.without_secrets(record.request)), ensure_ascii=False)),
    ]
    if record.holds and record.state not in FINAL:
        rows.append(("holds", ", ".join(what.replace(":", " ") for what in record.holds)))
    if record.wait:
        rows.append(("waits for", Text(str(record.wait["reason"]), style="yellow")))
    if record.error:
        error = record.error
        where = f" in {error['step']}" if error["step"] else ""
        rows.append(("error", Text(f"{error['message']} [{error['code']}{where}]", style="red")))
    rows += [("left", Text(sentence, style="red")) for sentence in view.left_behind(record)]
    if record.result is not None:
        rows.append(("result", json.dumps(record.result, indent=2, ensure_ascii=False)))
    advice = view.advice(record, definition)
    if advice:
        rows.append(("what to do", advice))
    for name, value in rows:
        facts.add_row(Text(name, style="dim"), value if isinstance(value, Text) else Text(value))
    return Group(facts, _steps(record, definition, now_ms))


def _given(request: Any) -> Any:
    """Return a request without the fields that nobody gave."""
    if isinstance(request, dict):
        return {key: _given(one) for key, one in request.items() if one not in (None, {}, [])}
    return request


def _steps(record: Record, definition: Definition | None, now_ms: int) -> Table:
    table = _table("step!", "state!", "runs!", "began!", "took!", "undo")
    day = view.local_time(record.created_at).partition(" ")[0]
    for one in view.steps_of(record, definition):
        _, _, style = view.MARKS[one.state]
        table.add_row(
            one.name,
            Text(str(one.state), style=style),
            str(one.attempts or ""),
            view.local_time(one.began_at).removeprefix(f"{day} "),
            view.duration(one.seconds(now_ms)),
            (one.undo or "") + (f", {one.undo_attempts} runs" if one.undo_attempts > 1 else ""),
        )
    return table


# -- the catalogue -----------------------------------------------------------------------------------------------------


def catalogue_table(entries: Sequence[catalogue.Entry]) -> Group:
    """Return all tasks: the operations, then what beat runs."""
    tables = {
        "operation": _table("operation!", "what it does"),
        "query": _table("query!", "what it answers"),
        "periodic": _table("run by beat!", "what it does"),
    }
    for entry in entries:
        if entry.kind in tables:
            tables[entry.kind].add_row(Text(entry.task, style="bold"), entry.summary)
    hint = Text("`vmops tasks NAME` shows one in full, `--json` the JSON Schema of every request.", style="dim")
    return Group(*tables.values(), hint)


def task_details(entry: catalogue.Entry) -> Group:
    """Return one task: its request's fields, an example, its steps."""
    parts: list[Any] = [Text.assemble((entry.task, "bold"), f"  {entry.summary}")]
    fields = catalogue.fields_of(entry.request)
    if fields:
        table = _table("field!", "type", "default", "meaning")
        for one in fields:
            table.add_row(one.name, one.type, one.default, one.description)
        parts.append(table)
    else:
        parts.append(Text("It takes no arguments."))
    if entry.kind in {"operation", "query"}:
        parts += [
            Text("From a shell:"),
            Padding(Text(catalogue.command_line(entry)), (0, 0, 1, 4)),
            Text("From any Celery client (keyword arguments of the task, queue vmops.control):"),
            Padding(Text(json.dumps(entry.example, ensure_ascii=False)), (0, 0, 1, 4)),
        ]
    if entry.kind == "operation":
        parts.append(Text("Steps: " + ", ".join(name.rpartition(".")[2] for name in entry.steps)))
    elif entry.kind in {"step", "undo"}:
        parts.append(Text("Sent by the engine only: a link of its operation's chain."))
    return Group(*parts)
