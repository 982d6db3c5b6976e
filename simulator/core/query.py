"""The expressions of `get_all_records_where` (grammar and its traps: xapi.md 12.2).

    true   false   not e   e and e   e or e   (e)   field "name" = "value"

`and` and `or` share one level and associate to the left; `not` binds loosest. Values compare as database text.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.schema import ClassSpec

_LEXEME = re.compile(r'\s*(?:(?P<word>true|false|not|and|or|field|[()=])|"(?P<text>[^"]*)")')
Test = Callable[[Row], bool]
_Value = Callable[[Row], str]


def compile_query(spec: ClassSpec, expression: str) -> Test:
    """Return a test of rows. Raises INVALID_VALUE for bad syntax; an unknown field fails at the first row tested."""
    return _Parser(spec, expression).parse()


class _Parser:
    def __init__(self, spec: ClassSpec, expression: str) -> None:
        self._spec = spec
        self._expression = expression
        self._lexemes: list[tuple[str, str]] = []
        position = 0
        text = expression.rstrip()
        while position < len(text):
            match = _LEXEME.match(text, position)
            if not match:
                raise self._invalid("lexing: empty token")
            self._lexemes.append(("word", match["word"]) if match["word"] else ("text", match["text"]))
            position = match.end()

    def _invalid(self, reason: str) -> Failure:
        return Failure("INVALID_VALUE", self._expression, f'Failure("{reason}")')

    def parse(self) -> Test:
        """Read the whole expression."""
        test = self._expression_of()
        if self._lexemes:
            raise self._parse_error()
        return test

    def _parse_error(self) -> Failure:
        return Failure("INVALID_VALUE", self._expression, "Parsing.Parse_error")

    def _next_is(self, word: str) -> bool:
        if self._lexemes and self._lexemes[0] == ("word", word):
            self._lexemes.pop(0)
            return True
        return False

    def _expression_of(self) -> Test:
        if self._next_is("not"):
            return partial(_not, self._expression_of())
        left = self._term()
        while self._lexemes and self._lexemes[0] in {("word", "and"), ("word", "or")}:
            word = self._lexemes.pop(0)[1]
            if self._lexemes and self._lexemes[0] == ("word", "not"):
                return partial(_JOINS[word], left, self._expression_of())
            left = partial(_JOINS[word], left, self._term())
        return left

    def _term(self) -> Test:
        if self._next_is("true"):
            return _always
        if self._next_is("false"):
            return _never
        if self._next_is("("):
            inner = self._expression_of()
            if not self._next_is(")"):
                raise self._parse_error()
            return inner
        left = self._value()
        if not self._next_is("="):
            raise self._parse_error()
        return partial(_equal, left, self._value())

    def _value(self) -> _Value:
        is_field = self._next_is("field")
        if not self._lexemes or self._lexemes[0][0] != "text":
            raise self._parse_error()
        text = self._lexemes.pop(0)[1]
        return _FieldText(self._spec, text) if is_field else _Literal(text)


class _FieldText:
    """A field's value in database spelling."""

    def __init__(self, spec: ClassSpec, name: str) -> None:
        self._name = name
        self._field = spec.by_query_name.get(name)

    def __call__(self, row: Row) -> str:
        if self._name == "_ref":
            return row.ref
        if self._field is None:
            raise Failure("INTERNAL_ERROR", "missing field", self._name, "")
        return self._field.type.text(row.values[self._field.name])


class _Literal:
    def __init__(self, text: str) -> None:
        self._text = text

    def __call__(self, row: Row) -> str:
        del row
        return self._text


def _always(row: Row) -> bool:
    del row
    return True


def _never(row: Row) -> bool:
    del row
    return False


def _equal(left: _Value, right: _Value, row: Row) -> bool:
    return left(row) == right(row)


def _not(inner: Test, row: Row) -> bool:
    return not inner(row)


def _and(left: Test, right: Test, row: Row) -> bool:
    return left(row) and right(row)


def _or(left: Test, right: Test, row: Row) -> bool:
    return left(row) or right(row)


_JOINS = {"and": _and, "or": _or}
