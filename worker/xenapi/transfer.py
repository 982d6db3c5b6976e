"""Disk contents, in and out of a pool, in constant memory (xapi.md 10.3, images.md 10).

XAPI answers 200 before it has attached the disk, and an export that fails merely ends early. So a transfer always has a
task of its own, and only the task's success, asked for by `confirm`, says that the stream was whole.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from http import HTTPStatus
from http.client import HTTPException
from typing import TYPE_CHECKING, Literal, Self

from worker.errors import PermanentError, PoolUnreachable, TruncatedStream, UnknownResult, VmopsError, XenAPIFailure
from worker.xenapi import xapi_task
from worker.xenapi.handler import Channel, Patience, Refused, Request, additional_information, open_channel, truncated
from worker.xenapi.session import Session

if TYPE_CHECKING:
    from types import TracebackType

    from _typeshed import ReadableBuffer, WriteableBuffer

Format = Literal["vhd", "raw"]

#: A second answer inside an export's body announces that it failed (xapi.md 10.1).
_ANSWER_BEGIN = b"HTTP/"
_PIECE_BYTES = 1024 * 1024
_ERROR_TEXT_BYTES = 4096
#: After a break, time for the task to say why; after a refusal the handler is through with it.
_VERDICT_S = 5.0
_VERDICT_AFTER_REFUSAL_S = 0.5

#: Between two chances to cancel while the pool finishes a transfer.
_SLICE_S = 1.0

_log = logging.getLogger(__name__)


class _Transfer:
    """A running transfer: its channel, and the task that tells its end. A context manager."""

    _what = "the transfer"

    def __init__(self, session: Session, task_ref: str, channel: Channel) -> None:
        self.task_ref = task_ref
        self._session = session
        self._channel = channel
        self._is_settled = False

    @property
    def on_idle(self) -> Callable[[], None]:
        """Called about every second while one waits for the stream; what it raises ends the transfer."""
        return self._channel.patience.on_idle

    @on_idle.setter
    def on_idle(self, check: Callable[[], None]) -> None:
        self._channel.patience.on_idle = check

    def close(self) -> None:
        """Drop the connection at once, also in mid-stream. The pool ends its side, and the task, by itself.

        For the thread that reads or writes; `on_idle` is the way to reach it from elsewhere.
        """
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()
        if not self._is_settled:
            _discard(self._session, self.task_ref)

    def _settle(self, *, is_verified: bool) -> None:
        """Wait for the task's end and remove it. Raises what its end means."""
        session = self._session
        deadline_s = time.monotonic() + session.settings.stream_timeout_s
        while not (outcome := xapi_task.wait(session, self.task_ref, _SLICE_S)).is_final:
            self.on_idle()
            if time.monotonic() >= deadline_s:
                break
        if outcome.status == "pending":
            raise TruncatedStream(
                f"Pool {session.pool_name!r}: {self._what} is over, but its task did not end within "
                f"{session.settings.stream_timeout_s:g} s. It has to begin again.",
            )
        self._is_settled = True
        if outcome.status == "vanished":
            if is_verified:
                return
            raise UnknownResult(
                f"Pool {session.pool_name!r} lost the task of {self._what}, most likely in a restart, so nothing says "
                f"whether it was whole. Begin it again.",
            )
        _tidy(session, self.task_ref, xapi_task.finish)
        if outcome.error is not None:
            raise outcome.error


class Export(_Transfer):
    """A disk's contents as a stream. What is read counts only after `confirm`."""

    _what = "the export"

    def __init__(self, session: Session, task_ref: str, channel: Channel) -> None:
        super().__init__(session, task_ref, channel)
        self._head: memoryview | None = None

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Fill the buffer; return the number of bytes, 0 at the stream's end, be it early or not.

        Raises TruncatedStream when the connection breaks or stalls, or an error page comes instead of data (then the
        XenAPIFailure that the task tells, if it does), and whatever `on_idle` raises.
        """
        view = memoryview(buffer).cast("B")
        try:
            if self._head is None:
                self._head = self._sniff()
            count = min(len(self._head), len(view))
            view[:count] = self._head[:count]
            self._head = self._head[count:]
            if count < len(view):
                count += self._channel.response.readinto(view[count:])
        except (OSError, HTTPException) as error:
            raise truncated(self._session, self._what, error) from error
        return count

    def confirm(self, *, verified: bool = False) -> None:
        """Return only if the pool's task for this export ended in success; then the task is removed.

        `verified` says that the caller has proved the stream whole by itself (length and closing footer): then a task
        that a restart of the toolstack has wiped out does no harm.

        Raises XenAPIFailure, TruncatedStream, UnknownResult.
        """
        self._settle(is_verified=verified)

    def _sniff(self) -> memoryview:
        channel = self._channel
        head = channel.response.read(len(_ANSWER_BEGIN))
        channel.patience.limit_s = self._session.settings.stream_timeout_s
        if head != _ANSWER_BEGIN:
            return memoryview(head)
        page = (head + channel.response.read(_ERROR_TEXT_BYTES)).decode("utf-8", "replace")
        channel.close()
        _raise_failure_of_task(self._session, self.task_ref, _VERDICT_S)
        status = page.partition("\r\n")[0][:100]
        raise TruncatedStream(
            f"Pool {self._session.pool_name!r} answered {status}{additional_information(page)} instead of the disk's "
            f"data. The export has to begin again.",
        )


class Import(_Transfer):
    """A disk being filled. What was written counts only after `confirm`."""

    _what = "the import"

    def __init__(self, session: Session, task_ref: str, channel: Channel, length: int) -> None:
        super().__init__(session, task_ref, channel)
        self._left = length
        channel.connection.sock.settimeout(session.settings.stream_timeout_s)

    def write(self, data: ReadableBuffer) -> None:
        """Send all of `data`. Raises TruncatedStream, or the XenAPIFailure that made the pool hang up."""
        view = memoryview(data).cast("B")
        if len(view) > self._left:
            raise ValueError(f"{len(view)} bytes do not fit into the {self._left} that are left of the import")
        try:
            for begin in range(0, len(view), _PIECE_BYTES):
                piece = view[begin : begin + _PIECE_BYTES]
                self._channel.connection.sock.sendall(piece)
                self._left -= len(piece)
        except OSError as error:
            self.close()
            _raise_failure_of_task(self._session, self.task_ref, _VERDICT_S)
            raise truncated(self._session, self._what, error) from error

    def confirm(self) -> None:
        """Return only if all was written and the pool's task ended in success; then the task is removed.

        XAPI may hold the disk for a moment longer (xapi-observed.md). Raises XenAPIFailure, TruncatedStream,
        UnknownResult.
        """
        if self._left:
            self.close()
            raise TruncatedStream(f"The import ended {self._left} bytes too early. It has to begin again.")
        self._settle(is_verified=False)


def export_vdi(
    session: Session,
    vdi: str,
    fmt: Format,
    *,
    base: str | None = None,
    task_ref: str | None = None,
    on_task: Callable[[str], None] | None = None,
) -> Export:
    """Begin to export a disk, given by ref or uuid; with `base`, only its difference from that one.

    Makes a task unless one is given, and tells `on_task` its ref before the pool begins, so that whoever takes over can
    remove it. Raises XenAPIFailure, PoolUnreachable, TruncatedStream, CertificateMismatch, LeaseLost, UnknownResult.
    """
    query = {"vdi": vdi, "format": fmt} | ({"base": base} if base else {})
    patience = Patience(session.settings.first_byte_timeout_s)
    task_ref = _announced_task(session, task_ref, f"vmops export of {vdi}", on_task)
    return Export(session, task_ref, _begin(session, Request("GET", "/export_raw_vdi", query), task_ref, patience))


def import_vdi(
    session: Session,
    vdi_ref: str,
    fmt: Format,
    length: int,
    *,
    task_ref: str | None = None,
    on_task: Callable[[str], None] | None = None,
) -> Import:
    """Begin to fill a disk with exactly `length` bytes. XAPI answers, or redirects, before it takes the first of them.

    The disk must be new: a VHD's empty blocks are left as they are. Tasks and errors as in `export_vdi`.
    """
    query = {"vdi": vdi_ref, "format": fmt}
    request = Request("PUT", "/import_raw_vdi", query, {"Content-Length": str(length)})
    patience = Patience(session.settings.first_byte_timeout_s)
    task_ref = _announced_task(session, task_ref, f"vmops import of {vdi_ref}", on_task)
    return Import(session, task_ref, _begin(session, request, task_ref, patience), length)


def _announced_task(session: Session, task_ref: str | None, label: str, on_task: Callable[[str], None] | None) -> str:
    task_ref = task_ref or xapi_task.create(session, label)
    if on_task is not None:
        on_task(task_ref)
    session.guard()
    return task_ref


def _begin(session: Session, request: Request, task_ref: str, patience: Patience) -> Channel:
    named = Request(request.verb, request.path, {**request.query, "task_id": task_ref}, request.headers)
    try:
        return open_channel(session, named, patience)
    except Refused as refusal:
        _raise_failure_of_task(session, task_ref, _VERDICT_AFTER_REFUSAL_S)
        _discard(session, task_ref)
        for wanted in ("vdi", "base"):
            if wanted in request.query:
                _require_disk(session, request.query[wanted])
        if refusal.status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise PermanentError(f"{refusal} Check that the disk exists and its storage is attached.") from refusal
        raise TruncatedStream(f"{refusal} The transfer has to begin again.") from refusal
    except BaseException:
        _discard(session, task_ref)
        raise


def _require_disk(session: Session, vdi: str) -> None:
    """Raise XenAPIFailure if there is no such disk: to the handlers that is an internal error like any other."""
    session.call("VDI.get_uuid" if vdi.startswith("OpaqueRef:") else "VDI.get_by_uuid", vdi)


def _raise_failure_of_task(session: Session, task_ref: str, patience_s: float) -> None:
    """Raise the XenAPIFailure with which the task ended, if it did within a moment."""
    try:
        outcome = xapi_task.wait(session, task_ref, patience_s)
    except (PoolUnreachable, XenAPIFailure):
        return
    if outcome.error is not None:
        _discard(session, task_ref)
        raise outcome.error


def _discard(session: Session, task_ref: str) -> None:
    _tidy(session, task_ref, xapi_task.discard)


def _tidy(session: Session, task_ref: str, remove: Callable[[Session, str], None]) -> None:
    """Remove a transfer's task; what prevents that is no reason to fail."""
    try:
        remove(session, task_ref)
    except VmopsError as error:
        _log.info("pool %s: a transfer's task stays until the pool drops it: %s", session.pool_name, error)
