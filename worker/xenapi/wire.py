"""What goes over the wire: which calls only read, and arguments in the form XAPI takes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from worker.errors import PermanentError

#: XAPI refuses longer RPC bodies with a bare HTTP 500 (xapi.md 2.2).
MAX_REQUEST_BYTES = 300 * 1024

_XML_RPC_INT_LIMIT = 2**31
_READS = ("get_", "assert_")
_EVENT_READS = frozenset({"event.from", "event_from"})
# XML 1.0 has no way to write these, so XAPI would answer a bare HTTP 500.
_NOT_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")
# XAPI writes map keys unescaped into its answers (xapi.md 2.3): one such key makes the whole record unreadable.
_BREAKS_A_KEY = re.compile("[<>&]")


def is_read(method: str) -> bool:
    """Tell whether a call changes nothing, so that it may be sent again."""
    if method in _EVENT_READS:
        return True
    return not method.startswith("Async.") and method.rpartition(".")[2].startswith(_READS)


def arguments(method: str, values: Sequence[object]) -> tuple[Any, ...]:
    """Return the arguments as XML-RPC can carry them: big integers as text (xapi.md 2.7), sequences as lists.

    Raises PermanentError for text that XML, or XAPI's own answers, cannot hold; TypeError for values without a type.
    """
    return tuple(_portable(method, value) for value in values)


def _portable(method: str, value: object) -> Any:
    if isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        return value if -_XML_RPC_INT_LIMIT <= value < _XML_RPC_INT_LIMIT else str(value)
    if isinstance(value, str):
        if _NOT_IN_XML.search(value):
            raise PermanentError(f"{method} cannot be sent: a text in it holds a control character. Remove it.")
        return value
    if isinstance(value, Mapping):
        return {_key(method, key): _portable(method, part) for key, part in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_portable(method, part) for part in value]
    raise TypeError(f"{method}: XenAPI has no type for {type(value).__name__}")


def _key(method: str, key: object) -> str:
    text = str(key)
    if _BREAKS_A_KEY.search(text) or _NOT_IN_XML.search(text):
        raise PermanentError(f"{method} cannot be sent: XAPI cannot store the map key {text!r} (<, > and & break it).")
    return text
