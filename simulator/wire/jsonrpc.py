"""JSON-RPC 1.0 and 2.0 as XAPI speaks them at `/jsonrpc` (xapi.md 2.4, transcripts 184 and 185)."""

from __future__ import annotations

import json
from typing import Any

from simulator.model.types import Type
from simulator.wire.xmlrpc import MalformedRequest


class JsonCall:
    """One parsed request; answers in the version it was asked in."""

    def __init__(self, body: bytes) -> None:
        try:
            call = json.loads(body)
            self.method: str = call["method"]
            self.params: list[Any] = call["params"] if "jsonrpc" not in call else call.get("params", [])
            self._id = call["id"]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MalformedRequest(f"Rpc.Runtime_error ({type(error).__name__})") from None
        if not isinstance(self.method, str) or not isinstance(self.params, list):
            raise MalformedRequest("Rpc.Runtime_error")
        self._is_second = call.get("jsonrpc") == "2.0"

    def _encode(self, answer: dict[str, Any]) -> bytes:
        return json.dumps(answer, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")

    def success(self, kind: Type, value: Any) -> bytes:
        """Return the body of a successful answer."""
        result = kind.json(value)
        if self._is_second:
            return self._encode({"jsonrpc": "2.0", "result": result, "id": self._id})
        return self._encode({"result": result, "error": None, "id": self._id})

    def failure(self, details: list[str]) -> bytes:
        """Return the body of a failed answer; the code of a 2.0 error is always 1."""
        if self._is_second:
            error = {"code": 1, "message": details[0], "data": details[1:]}
            return self._encode({"jsonrpc": "2.0", "error": error, "id": self._id})
        return self._encode({"result": None, "error": details, "id": self._id})
