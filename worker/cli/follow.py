"""Follow one operation until it has ended: live in a terminal, one line for each event elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from worker.cli.complaints import about_idleness, about_journal
from worker.cli.view import STATE_STYLES, duration, has_ended, steps_table, title_of
from worker.client import VMOps
from worker.operations.catalogue import Definition
from worker.operations.record import Record
from worker.operations.states import State

#: One wait for news; also the pace at which `on_idle` is called.
_BLOCK_MS = 500
#: An operation that no worker has taken for this long deserves a word.
_IDLE_AFTER_S = 5.0
#: The journal may be restarted under us.
_JOURNAL_PATIENCE_S = 60.0
_REFRESH_PER_S = 8

#: Lines of history that say nothing which the next line does not say better.
_SILENT = {"next step", "next undo"}


@dataclass
class Following:
    """What is shown of one operation."""

    vmops: VMOps
    record: Record
    definition: Definition | None
    console: Console
    on_idle: Callable[[], None] | None = None
    clock_ahead_ms: int = 0
    """The journal's clock minus ours."""
    note: str = ""
    """The newest line of history that is worth its place."""
    is_hinted: bool = False
    last_step: str = field(default="", repr=False)

    @property
    def unicode(self) -> bool:
        """Whether the terminal can show more than ASCII."""
        return self.console.encoding.lower().startswith("utf")

    def now_ms(self) -> int:
        """Return the journal's time without asking it."""
        return int(time.time() * 1000) + self.clock_ahead_ms

    def __rich__(self) -> Group:
        """Draw the operation as it stands now."""
        record, now = self.record, self.now_ms()
        began = record.started_at or record.created_at
        elapsed = duration(((record.ended_at or now) - began) / 1000) if began else ""
        head = Text.assemble((title_of(record), "bold"), "  ", (record.id, "dim"))
        bar = Table.grid(padding=(0, 2))
        finished = record.state is State.SUCCEEDED
        bar.add_row(
            ProgressBar(total=100, completed=record.progress, width=40, finished_style="green" if finished else "cyan"),
            Text(f"{record.progress:.0f} %"),
            Text(elapsed),
            Text(str(record.state), style=STATE_STYLES.get(record.state, "cyan")),
        )
        parts: list[Any] = [head, steps_table(record, self.definition, now, unicode=self.unicode), bar]
        if not has_ended(record):
            note = f"waits: {record.wait['reason']}" if record.wait else self.note
            parts.append(Text(note, style="dim", overflow="ellipsis", no_wrap=True))
        return Group(*parts)


def follow(
    vmops: VMOps,
    operation_id: str,
    definition: Definition | None,
    console: Console,
    on_idle: Callable[[], None] | None = None,
) -> Record:
    """Show an operation until it has ended, from the beginning of its history; return its last record.

    `on_idle` is called about twice a second and may raise. Raises OperationNotFound, Complaint (no journal).
    """
    try:
        record = vmops.journal.get(operation_id)
        ahead_ms = vmops.journal.now_ms() - int(time.time() * 1000)
    except RedisError as error:
        raise about_journal(error, vmops.settings) from error
    shown = Following(vmops, record, definition, console, on_idle, ahead_ms)
    is_live = console.is_terminal
    view = Live(shown, console=console, refresh_per_second=_REFRESH_PER_S) if is_live else nullcontext()
    with view:
        for fields in _news(shown):
            if fields.get("text") not in _SILENT:
                shown.note = fields.get("text", "")
            if not is_live:
                for line in _lines(shown, fields):
                    console.print(line, highlight=False, soft_wrap=True)
    return shown.record


def _news(shown: Following) -> Iterator[dict[str, str]]:
    """Yield the lines of history while keeping the record fresh."""
    last = "0"
    journal = shown.vmops.journal
    lost_at_s: float | None = None
    while True:
        try:
            shown.record = journal.get(shown.record.id)
            ended = has_ended(shown.record)
            lines = journal.events(shown.record.id, last, None if ended else _BLOCK_MS)
        except (RedisConnectionError, RedisTimeoutError) as error:
            lost_at_s = lost_at_s or time.monotonic()
            if time.monotonic() - lost_at_s > _JOURNAL_PATIENCE_S:
                raise about_journal(error, shown.vmops.settings) from error
            shown.note = "the journal does not answer; waiting for it"
            _idle(shown)
            time.sleep(_BLOCK_MS / 1000)
            continue
        lost_at_s = None
        for mark, fields in lines:
            last = mark
            yield {"time_ms": mark.partition("-")[0], **fields}
        if ended and not lines:
            return
        if not ended:
            _idle(shown)


def _idle(shown: Following) -> None:
    if shown.on_idle is not None:
        shown.on_idle()
    record = shown.record
    age_s = (shown.now_ms() - (record.updated_at or record.created_at or 0)) / 1000
    if not shown.is_hinted and record.state is State.QUEUED and age_s > _IDLE_AFTER_S:
        shown.is_hinted = True
        shown.console.print(about_idleness(shown.vmops), style="yellow", highlight=False, soft_wrap=True)


def _lines(shown: Following, fields: dict[str, str]) -> Iterator[str]:
    """Return the lines for one event: when, how far, which step, what."""
    step, text = fields.get("step", ""), fields.get("text", "")
    moment = datetime.fromtimestamp(int(fields["time_ms"]) / 1000, UTC).astimezone().strftime("%H:%M:%S")
    percent = f"{float(fields['progress']):3.0f} %" if fields.get("progress") else " " * 5
    if text in _SILENT:
        yield f"{moment}  {percent}  {shown.last_step:<22} {'undone' if text == 'next undo' else 'done'}"
    else:
        yield f"{moment}  {percent}  {step:<22} {text}".rstrip()
    shown.last_step = step
