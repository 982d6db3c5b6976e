"""Requests to answers: which handler, which fault, how long it takes."""

from __future__ import annotations

import time

import simulator.console.handlers
import simulator.metrics.handlers  # noqa: F401 - registers its handlers
from simulator.api.catalogue import dispatch
from simulator.api.registry import Origin
from simulator.control import Control
from simulator.core.failures import Abandoned, Failure
from simulator.faults import Fault, Ignored
from simulator.handlers import HANDLERS, Refused, failure_page, route
from simulator.model.types import VOID, escape
from simulator.pool import Pool
from simulator.wire import xmlrpc
from simulator.wire.http import (
    CONTROL_PREFIX,
    BadRequest,
    Connection,
    ConnectionReset,
    Request,
    internal_error_page,
    page,
    rpc_head,
)
from simulator.wire.jsonrpc import JsonCall

_FORBIDDEN = page(403, "forbidden", "Access to the requested resource is forbidden.")
_NO_METHOD = page(501, "method not implemented", "This method is not implemented.")
_METHODS = frozenset({"GET", "PUT", "POST", "CONNECT", "OPTIONS"})
_TASK_HEADER = "x-http-other-config-"


class Server:
    """Serves the connections of one pool."""

    def __init__(self, pool: Pool, control: Control) -> None:
        self._pool = pool
        self._control = control

    def serve(self, connection: Connection) -> None:
        """Answer requests until the connection ends."""
        while True:
            try:
                request = connection.read_request()
                if request is None or not self._answer(request, connection):
                    return
            except BadRequest as bad:
                connection.send(page(bad.status, "error", bad.text))
                return
            except Refused as refused:
                connection.send(refused.answer)
                return
            except Abandoned:
                return
            except (OSError, ConnectionReset):
                raise
            except Exception as error:
                # A defect of ours: the client hears of it as of one of XAPI's, we by the traceback.
                connection.send(internal_error_page(escape(repr(error))))
                raise

    def _answer(self, request: Request, connection: Connection) -> bool:
        """Answer one request; tell whether the connection goes on."""
        if request.path.startswith(CONTROL_PREFIX):
            connection.send(self._control.answer(request, connection))
            return request.keeps_alive
        if request.method == "POST":
            return self._rpc(request, connection)
        if request.method == "OPTIONS":
            connection.send(_preflight(request))
            return request.keeps_alive
        if request.method not in _METHODS:
            connection.send(_NO_METHOD)
            return False
        path = route(request.method, request.path)
        name = f"{request.method} {path}"
        self._count(name)
        fault = self._pool.faults.pick(name)
        self._strike_page(fault, connection, "before")
        self._pool.db.adopt_thread()
        handle = HANDLERS.get((request.method, path))
        goes_on = False
        if handle is None:
            connection.send(_FORBIDDEN)
        else:
            self._admit_handler(connection)
            goes_on = handle(self._pool, request, connection, fault)
        self._strike_page(fault, connection, "after")
        return goes_on

    def _admit_handler(self, connection: Connection) -> None:
        try:
            self._pool.hosts.admit_handler(connection.host_ref)
        except Failure as failure:
            raise Refused(failure_page(failure)) from None

    def _strike_page(self, fault: Fault | None, connection: Connection, moment: str) -> None:
        try:
            self._pool.faults.strike(fault, moment, connection)
        except Failure as failure:
            raise Refused(failure_page(failure)) from None

    def _count(self, name: str) -> None:
        self._pool.calls[name] += 1
        if self._pool.latency_s:
            time.sleep(self._pool.latency_s)

    def _rpc(self, request: Request, connection: Connection) -> bool:
        json_call = None
        try:
            if request.path.startswith("/jsonrpc"):
                json_call = JsonCall(request.body)
                name, params = json_call.method, json_call.params
            else:
                name, params = xmlrpc.parse_call(request.body)
        except xmlrpc.MalformedRequest as error:
            connection.send(internal_error_page(str(error).replace('"', "&quot;")))
            return False
        kept = {
            f"http:{key[len(_TASK_HEADER) :]}": value
            for key, value in request.headers.items()
            if key.startswith(_TASK_HEADER)
        }
        body = self._call(name, params, connection, json_call, kept)
        content_type = "text/xml" if json_call is None else "application/json"
        keep = request.keeps_alive
        connection.send(rpc_head(len(body), content_type, keep=keep, old=request.is_old) + body)
        return keep

    def _call(
        self,
        name: str,
        params: list[object],
        connection: Connection,
        json_call: JsonCall | None,
        kept: dict[str, str],
    ) -> bytes:
        self._count(name)
        faults = self._pool.faults
        fault = faults.pick(name)
        try:
            faults.strike(fault, "before", connection)
            self._pool.db.adopt_thread()
            self._pool.hosts.admit(connection.host_ref, name)
            kind, value = dispatch(self._pool, name, params, Origin(connection.host_ref, kept))
            faults.strike(fault, "after", connection)
        except Ignored:
            kind, value = VOID, None
        except RecursionError:
            details = ["INTERNAL_ERROR", "Stack_overflow"]
            return json_call.failure(details) if json_call else xmlrpc.failure(details)
        except Failure as failure:
            details = failure.details
            return json_call.failure(details) if json_call else xmlrpc.failure(details)
        if json_call is not None:
            return json_call.success(kind, value)
        if name == "system.listMethods":
            return xmlrpc.bare(kind, value)
        return xmlrpc.success(kind, value)


def _preflight(request: Request) -> bytes:
    wanted = request.headers.get("access-control-request-headers", "")
    return (
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection:keep-alive\r\ncache-control:no-cache, no-store\r\n"
        f"Access-Control-Allow-Origin:*\r\nAccess-Control-Allow-Headers:{wanted}, X-Requested-With\r\n"
        "Access-Control-Allow-Methods:PUT\r\n\r\n"
    ).encode()
