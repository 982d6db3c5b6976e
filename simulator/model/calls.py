"""The calls that a class has besides its accessors: parameters, result, and whether there is an Async form.

A declaration has a line per call: name, parameters, then `-> result` unless it is void, then marks:
`sync` for a call without Async form, `open` for one that needs no session, `gone` for one that XenAPI has removed,
`hidden` for one that works but is not in the published reference (xapi.md 1.2).
Types are written as in `simulator.model.types.parse_type`; `&VM` is a reference that is looked up, `@VM` one that may
be null, `record:VM` a constructor's struct or a record as a result, `?` marks an optional parameter (xapi.md 2.6).
"""

from __future__ import annotations

from dataclasses import dataclass

from simulator.model import calls_device, calls_host, calls_vm

_MODULES = (calls_vm, calls_host, calls_device)
_MARKS = frozenset({"sync", "open", "gone", "hidden"})


@dataclass(frozen=True, slots=True)
class CallSpec:
    """One call, as declared."""

    cls: str
    verb: str
    params: tuple[str, ...]
    result: str
    marks: frozenset[str]

    @property
    def name(self) -> str:
        """The call's full name."""
        return f"{self.cls}.{self.verb}"

    @property
    def has_async(self) -> bool:
        """Whether `Async.` works."""
        return "sync" not in self.marks

    @property
    def needs_session(self) -> bool:
        """Whether the first argument is a session."""
        return "open" not in self.marks

    @property
    def is_removed(self) -> bool:
        """Whether it answers MESSAGE_REMOVED."""
        return "gone" in self.marks


def _call(cls: str, line: str) -> CallSpec:
    left, _arrow, right = line.partition(" -> ")
    (verb, *params), results = left.split(), right.split()
    marks = frozenset(_MARKS.intersection(results or params))
    return CallSpec(
        cls=cls,
        verb=verb,
        params=tuple(one for one in params if one not in marks),
        result=results[0] if results else "void",
        marks=marks,
    )


CALLS = {
    spec.name: spec
    for module in _MODULES
    for cls, text in module.CALLS.items()
    for spec in (_call(cls, line) for line in text.strip().splitlines())
}
