"""HTTP handlers: which request goes to which, and what they all do first (xapi.md 10.1).

    @handler("GET", "/vm_rrd")
    def vm_rrd(pool: Pool, request: Request, connection: Connection, fault: Fault | None) -> bool: ...

A handler sends its whole answer and tells whether the connection goes on; it raises Refused for an answer that ends it.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, NoReturn

from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.faults import Fault
from simulator.model.types import escape
from simulator.wire.http import Connection, Request, internal_error_page, page

if TYPE_CHECKING:
    from simulator.pool import Pool

Handler = Callable[["Pool", Request, Connection, "Fault | None"], bool]
HANDLERS: dict[tuple[str, str], Handler] = {}


class Refused(Exception):
    """The handler answers with this page and closes."""

    def __init__(self, answer: bytes) -> None:
        super().__init__("refused")
        self.answer = answer


def handler(method: str, path: str) -> Callable[[Handler], Handler]:
    """Register the decorated function for a method and path."""

    def register(body: Handler) -> Handler:
        HANDLERS[method, path] = body
        return body

    return register


def route(method: str, path: str) -> str:
    """Return the registered path that a request's path begins with, the longest of them; else the path itself.

    Xen Orchestra's `/import_raw_vdi/` finds `/import_raw_vdi` (xapi.md 2.1).
    """
    found = [known for verb, known in HANDLERS if verb == method and path.startswith(known)]
    return max(found, key=len, default=path)


def authorise(pool: Pool, request: Request) -> None:
    """Raise Refused(401) unless the request carries a session or Basic credentials."""
    session_ref = request.parameter("session_id")
    try:
        if session_ref is not None:
            pool.sessions.check(session_ref)
            return
        user, password = _basic(request)
        pool.authenticate(user, password)
    except Failure:
        realm = f"{request.method.lower()}_{request.path.strip('/')}"
        extra = f'WWW-Authenticate:Basic realm="{realm}"\r\n'
        text = "Please check your credentials and retry."
        raise Refused(page(401, "unauthorised", text, extra)) from None


def serving_host(pool: Pool, connection: Connection) -> Row:
    """Return the host whose port the request came to."""
    return pool.db.row("host", connection.host_ref or pool.master_ref)


def is_live(pool: Pool, host: Row) -> bool:
    """Tell whether the pool believes a host to be alive."""
    metrics = pool.db.find("host_metrics", host["metrics"])
    return metrics is not None and bool(metrics["live"])


def redirect(pool: Pool, request: Request, host: Row) -> NoReturn:
    """Raise Refused(302): the same request is to be sent to another host. Its task, if any, stays as it is.

    XAPI's redirects lead to https at the standard port (xapi.md 10.1); this one keeps to the port, and to the scheme,
    that the pool is served on, since nothing listens elsewhere.
    """
    scheme = "https" if pool.settings.tls else "http"
    address = f"[{host['address']}]" if ":" in host["address"] else host["address"]
    extra = f"Location: {scheme}://{address}:{pool.port}{request.target}\r\n"
    raise Refused(
        f"HTTP/1.1 302 Found\r\nConnection: close\r\nCache-Control: no-cache, no-store\r\n{extra}"
        "content-length: 0\r\n\r\n".encode()
    )


def ensure_served_by(pool: Pool, request: Request, connection: Connection, host_refs: Collection[str]) -> Row:
    """Return the serving host if it is among those; else raise Refused: 302 to a live one of them, 500 without one.

    For `/console` and `/vm_rrd` give the host the VM is resident on, for disk streams `hosts_with_sr`.
    """
    here = serving_host(pool, connection)
    if here.ref in host_refs:
        return here
    for ref in host_refs:
        host = pool.db.find("host", ref)
        if host is not None and is_live(pool, host):
            redirect(pool, request, host)
    raise Refused(failure_page(Failure("HOST_OFFLINE", *list(host_refs)[:1])))


def hosts_with_sr(pool: Pool, sr: Row) -> list[str]:
    """Return the hosts that have a storage repository plugged."""
    return [pbd["host"] for pbd in pool.db.linked(sr, "PBDs", "PBD") if pbd["currently_attached"]]


def named(pool: Pool, cls: str, wish: str | None) -> Row:
    """Return the object that a query names by reference or uuid. Raises Refused(500)."""
    table = pool.db.tables[cls]
    row = table.rows.get(wish or "") or table.by_uuid.get(wish or "")
    if row is None:
        raise Refused(_missing(cls, wish or ""))
    return row


def adopt_task(pool: Pool, request: Request, label: str) -> tuple[Row, bool]:
    """Return the task that the query names, or a new one, and whether it is the client's. Raises Refused(500)."""
    ref = request.parameter("task_id")
    if ref is None:
        return pool.tasks.create(label, None), False
    task = pool.db.find("task", ref)
    if task is None:
        raise Refused(_missing("task", ref))
    return task, True


def end_task(pool: Pool, task: Row, is_clients: bool, failure: Failure | None, result: str = "") -> None:  # noqa: FBT001 - as adopt_task returned it
    """End the task of a handler; one that the handler made disappears."""
    if failure is None:
        pool.tasks.succeed(task, result)
    else:
        pool.tasks.fail(task, failure.details)
    if not is_clients:
        pool.tasks.discard(task)


def failure_page(failure: Failure) -> bytes:
    """Return the 500 page that names an XenAPI failure."""
    return internal_error_page(escape(f"{failure.code}: [ {'; '.join(failure.details[1:])} ]"))


def _missing(cls: str, wish: str) -> bytes:
    return internal_error_page(escape(f'Db_exn.Read_missing_uuid("{cls}", "", "{wish}")'))


def _basic(request: Request) -> tuple[str, str]:
    kind, _, text = request.headers.get("authorization", "").partition(" ")
    if kind.lower() != "basic":
        raise Failure("SESSION_AUTHENTICATION_FAILED", "", "")
    try:
        user, _, password = base64.b64decode(text, validate=True).decode().partition(":")
    except ValueError:  # neither base64 nor UTF-8
        raise Failure("SESSION_AUTHENTICATION_FAILED", "", "") from None
    return user, password
