"""Conditions for `get_all_records_where` (xapi.md 12.2)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# XAPI's literals stand in double quotes and know no escapes.
_CANNOT_QUOTE = re.compile(r'["\\\x00-\x1f]')


def can_quote(value: str) -> bool:
    """Tell whether a condition can name this value."""
    return not _CANNOT_QUOTE.search(value)


def equal(field: str, value: str) -> str:
    """Return `field = value`, in parentheses. Raises ValueError when the value cannot be quoted."""
    if not can_quote(value):
        raise ValueError(f"{value!r} cannot be written in a XAPI query")
    return f'(field "{field}" = "{value}")'


def both(*conditions: str) -> str:
    """Return the conjunction, fully in parentheses: XAPI's precedences are not the usual ones."""
    return _joined("and", conditions)


def either(*conditions: str) -> str:
    """Return the disjunction, fully in parentheses."""
    return _joined("or", conditions)


def _joined(word: str, conditions: Sequence[str]) -> str:
    joined = conditions[0]
    for condition in conditions[1:]:
        joined = f"({joined} {word} {condition})"
    return joined
