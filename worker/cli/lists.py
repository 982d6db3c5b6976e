"""The tables that `vmops operations`, `show` and `tasks` print."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from worker.cli import catalogue, view
from worker.cli.doctor import Finding
from worker.operations.catalogue import Definition
from worker.operations.record import Record
from worker.operations.states import FINAL, State


def _table(*headings: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold")
    return table


def operations_table(records: Sequence[Record]) -> Table:
    """Return the operations, one a row."""
    table = _table("id", "operation", "instance", "state", "step", "progress", "submitted", "error")
    table.columns[0].no_wrap = True
    for record in records:
        style = view.STATE_STYLES.get(record.state, "cyan")
        waits = f" ({record.wait['reason']})" if record.wait else ""
        table.add_row(
            record.id,
            record.name,
            record.label,
            Text(str(record.state), style=style),
            "" if record.state is State.SUCCEEDED else f"{record.step}{waits}",
            f"{record.progress:.0f} %",
            view.local_time(record.created_at),
            record.error["message"] if record.error else "",
        )
    return table


def findings_table(findings: Sequence[Finding]) -> Table:
    """Return what `vmops doctor` found, and what to do about it."""
    table = _table("", "part", "", "found", "what to do")
    marks = {"good": Text("ok", style="green"), "note": Text("note", style="yellow"), "bad": Text("!!", style="red")}
    for one in findings:
        table.add_row(marks[one.level], one.part, one.what, Text(one.text), Text(one.advice))
    return table


def operation_details(record: Record, definition: Definition | None, now_ms: int) -> Group:
    """Return everything that matters about one operation."""
    facts = Table.grid(padding=(0, 2))
    began = record.started_at or record.created_at
    taken = view.duration(((record.ended_at or now_ms) - began) / 1000) if began else ""
    rows: list[tuple[str, Any]] = [
        ("operation", Text(view.title_of(record), style="bold")),
        ("id", record.id),
        ("pool", record.pool),
        ("state", Text(str(record.state), style=view.STATE_STYLES.get(record.state, "cyan"))),
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
    advice = view.advice(record)
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
    table = _table("step", "state", "runs", "began", "took", "undo", "undo runs")
    for one in view.steps_of(record, definition):
        _, _, style = view.MARKS[one.state]
        table.add_row(
            one.name,
            Text(str(one.state), style=style),
            str(one.attempts or ""),
            view.local_time(one.began_at),
            view.duration(one.seconds(now_ms)),
            one.undo or "",
            str(one.undo_attempts or ""),
        )
    return table


# -- the catalogue -----------------------------------------------------------------------------------------------------


def catalogue_table(entries: Sequence[catalogue.Entry]) -> Group:
    """Return all tasks: the operations, then what beat runs."""
    operations = _table("operation", "what it does", "steps")
    queries = _table("query", "what it answers")
    periodic = _table("run by beat", "what it does")
    for entry in entries:
        if entry.kind == "operation":
            steps = ", ".join(name.rpartition(".")[2] for name in entry.steps)
            operations.add_row(Text(entry.task, style="bold"), entry.summary, steps)
        elif entry.kind == "query":
            queries.add_row(Text(entry.task, style="bold"), entry.summary)
        elif entry.kind == "periodic":
            periodic.add_row(Text(entry.task, style="bold"), entry.summary)
    hint = Text("`vmops tasks NAME` shows one in full, `--json` the JSON Schema of every request.", style="dim")
    return Group(operations, queries, periodic, hint)


def task_details(entry: catalogue.Entry) -> Group:
    """Return one task: its request's fields, an example, its steps."""
    parts: list[Any] = [Text.assemble((entry.task, "bold"), f"  {entry.summary}")]
    fields = catalogue.fields_of(entry.request)
    if fields:
        table = _table("field", "type", "default", "meaning")
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
