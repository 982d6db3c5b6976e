"""Round-robin data: the figures that a pool's hosts keep of their VMs (xapi.md 10.2, 15)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPException

from worker.errors import PermanentError, PoolUnreachable, VmopsError
from worker.xenapi.address import Address
from worker.xenapi.handler import Patience, Refused, Request, open_channel, truncated
from worker.xenapi.rrd_xml import Figures, FiguresReader, Incomplete, Malformed, Reader, Updates, UpdatesReader
from worker.xenapi.session import Session

__all__ = ["Figures", "Updates", "of_vm", "updates"]

_PIECE_BYTES = 64 * 1024
#: A host of 1 000 VMs answers about 100 MB when 120 rows are asked for.
_MAX_UPDATES_BYTES = 512 * 1024 * 1024
#: A VM's archives hold 774 rows; with 100 sources that is about 2 MB.
_MAX_VM_BYTES = 64 * 1024 * 1024


def updates(
    session: Session,
    address: Address | None,
    start_s: int,
    interval_s: int,
    is_wanted: Callable[[str], bool],
) -> Updates:
    """Return the rows newer than `start_s` that one host (None: the master) has of the VMs it runs.

    Rows are at least `interval_s` long; the finest archive that reaches back so far is taken. `is_wanted` is asked of
    each `CF:class:uuid:name`. One request.

    Raises PoolUnreachable, CertificateMismatch, TruncatedStream, PermanentError.
    """
    reader = UpdatesReader(is_wanted, _MAX_UPDATES_BYTES)
    query = {"start": str(start_s), "interval": str(interval_s), "cf": "AVERAGE"}
    try:
        _read(session, "/rrd_updates", query, reader, address)
    except Refused as refused:
        raise _error(refused) from refused
    return reader.updates


def of_vm(session: Session, vm_uuid: str) -> Figures | None:
    """Return a VM's newest figures; None when there are none, as of a VM that never ran.

    The master sends the request on to the host that has them; of a halted VM it has the last ones itself. Raises as
    `updates`.
    """
    reader = FiguresReader(_MAX_VM_BYTES)
    try:
        _read(session, "/vm_rrd", {"uuid": vm_uuid}, reader, None)
    except Refused as refused:
        if refused.status == HTTPStatus.NOT_FOUND:
            return None
        raise _error(refused) from refused
    return reader.figures


def _error(refused: Refused) -> VmopsError:
    """Return what a refusal means: an error of the host's own may pass, as when the VM has just moved away."""
    is_passing = refused.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return PoolUnreachable(str(refused)) if is_passing else PermanentError(str(refused))


def _read(session: Session, path: str, query: Mapping[str, str], reader: Reader, address: Address | None) -> None:
    patience = Patience(session.settings.stream_timeout_s)
    request = Request("GET", path, query, {"Connection": "close"})
    try:
        with closing(open_channel(session, request, patience, address)) as channel:
            while data := channel.response.read(_PIECE_BYTES):
                reader.feed(data)
        reader.close()
    except (OSError, HTTPException, Incomplete) as error:
        raise truncated(session, f"the answer to {path}", error) from error
    except Malformed as error:
        raise PermanentError(
            f"Pool {session.pool_name!r} answers {path} with what is no round-robin data: {error}.",
        ) from error
