"""Every Celery task of vmops with the JSON Schema of its request and an example, read from the code that runs."""

from __future__ import annotations

import importlib
import inspect
import json
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from celery import Celery, Task

from worker.errors import UnknownOperation
from worker.operations.catalogue import Definition, definition_for, definition_of, definitions, is_declared
from worker.operations.query import Query, queries, query_of
from worker.operations.record import Direction, Record

Kind = Literal["operation", "query", "step", "undo", "periodic"]

#: What a link of an operation's chain is sent with; only the engine sends these.
_LINK_SCHEMA = {
    "type": "object",
    "properties": {
        "operation_id": {"type": "string", "description": "The operation's id in the journal."},
        "position": {"type": "integer", "minimum": 0, "description": "Index of the step in its operation."},
    },
    "required": ["operation_id", "position"],
    "additionalProperties": False,
}
_LINK_EXAMPLE = {"operation_id": "5f3c9d0e-7a41-4b0f-9f0e-0d6c1f1a2b3c", "position": 0}
#: What can stand in a dotted name.
_NAME = re.compile(r"[\w:-]+")
_BOUNDS = {"exclusiveMinimum": "above", "minimum": "from", "exclusiveMaximum": "below", "maximum": "to"}
_JSON_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


@dataclass(frozen=True)
class Entry:
    """One Celery task."""

    task: str
    kind: Kind
    summary: str
    request: Mapping[str, Any]
    """JSON Schema of its keyword arguments."""
    example: Mapping[str, Any]
    steps: list[str] = field(default_factory=list)
    """Of an operation: the names of its step tasks, in running order."""

    def as_json(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


def load() -> None:
    """Import the modules that declare operations; which ones is the application's business, not the command's."""
    from worker.app import MODULES

    for module in MODULES:
        importlib.import_module(module)


def find_definition(name: str) -> Definition:
    """Return the operation called `name`, with or without `vmops.`. Raises UnknownOperation."""
    load()
    wanted = name.removeprefix("vmops.")
    if not is_declared(wanted):
        known = [*(one.name for one in definitions()), *(one.name for one in queries())]
        raise UnknownOperation.among("operation or query", wanted, known)
    return definition_of(wanted)


def query_if_known(name: str) -> Query | None:
    """Return the query called `name`, with or without `vmops.`; None when there is none."""
    load()
    try:
        return query_of(name.removeprefix("vmops."))
    except UnknownOperation:
        return None


def definition_if_known(record: Record) -> Definition | None:
    """Return the operation's declaration; None when it was begun by a release that has other operations or steps."""
    load()
    try:
        return definition_for(record) if record.step else definition_of(record.name)
    except UnknownOperation:
        return None


def entries() -> list[Entry]:
    """Return every task: the operations with their steps, then what beat runs."""
    load()
    app = Celery("catalogue", set_as_current=False)
    app.finalize()
    found = [entry for definition in definitions() for entry in _of_definition(definition)]
    found += [
        Entry(one.task_name, "query", one.summary, one.request.model_json_schema(), one.request.example)
        for one in queries()
    ]
    listed = {entry.task for entry in found}
    others = [name for name in sorted(app.tasks) if name.startswith("vmops.") and name not in listed]
    return found + [_of_task(app.tasks[name]) for name in others]


def find(name: str) -> Entry:
    """Return one task by its name, with or without `vmops.`. Raises UnknownOperation."""
    wanted = name.removeprefix("vmops.")
    known = {entry.task.removeprefix("vmops."): entry for entry in entries()}
    if wanted not in known:
        raise UnknownOperation.among("task", wanted, (one for one in known if "." not in one))
    return known[wanted]


def _of_definition(definition: Definition) -> Iterator[Entry]:
    model = definition.request
    steps = [definition.step_task_name(Direction.RUN, position) for position in range(len(definition.steps))]
    yield Entry(
        definition.task_name,
        "operation",
        definition.summary,
        model.model_json_schema(),
        model.example,
        steps,
    )
    for position, step in enumerate(definition.steps):
        example = _LINK_EXAMPLE | {"position": position}
        yield Entry(steps[position], "step", _first_line(step.run), _LINK_SCHEMA, example)
        if step.undo is not None:
            name = definition.step_task_name(Direction.UNDO, position)
            yield Entry(name, "undo", _first_line(step.undo), _LINK_SCHEMA, example)


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]


def _of_task(task: Task[Any, Any]) -> Entry:
    """Describe a task that is no operation by the signature of its function."""
    properties: dict[str, Any] = {}
    required = []
    for name, parameter in inspect.signature(task.run).parameters.items():
        types = [part.strip() for part in str(parameter.annotation).split("|")]
        known = [_JSON_TYPES.get(one, "null") for one in types]
        properties[name] = {"type": known[0] if len(known) == 1 else known}
        if parameter.default is inspect.Parameter.empty:
            required.append(name)
        else:
            properties[name]["default"] = parameter.default
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    return Entry(task.name, "periodic", _first_line(task.run), schema, {})


# -- for people --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Field:
    """One field of a request."""

    name: str
    type: str
    default: str
    description: str


def fields_of(schema: Mapping[str, Any]) -> list[Field]:
    """Return the fields of a request, nested ones by their dotted names; `*` stands for each item of a list."""
    return list(_fields(schema, schema.get("$defs", {}), ""))


def _fields(schema: Mapping[str, Any], models: Mapping[str, Any], prefix: str) -> Iterator[Field]:
    required = set(schema.get("required", ()))
    for name, prop in schema.get("properties", {}).items():
        inner = _model_of(prop, models)
        if inner is not None and inner.get("properties", {}).keys() != {"sealed"}:
            yield from _fields(inner, models, f"{prefix}{name}.")
            continue
        default = "required" if name in required else json.dumps(prop.get("default"))
        yield Field(
            f"{prefix}{name}",
            "secret" if inner is not None else _type_text(prop),
            "" if default == "null" else default,
            prop.get("description", ""),
        )
        for part in (prop, *prop.get("anyOf", ())):
            item = _model_of(part.get("items", {}), models)
            if item is not None:
                yield from _fields(item, models, f"{prefix}{name}.*.")


def _model_of(prop: Mapping[str, Any], models: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for part in (prop, *prop.get("anyOf", ())):
        if "$ref" in part:
            model: Mapping[str, Any] = models[part["$ref"].rpartition("/")[2]]
            return model if "properties" in model else None
    return None


def _type_text(prop: Mapping[str, Any]) -> str:
    parts = [part for part in prop.get("anyOf", [prop]) if part.get("type") != "null"]
    return " or ".join(_one_type(part) for part in parts)


def _one_type(part: Mapping[str, Any]) -> str:
    if "enum" in part:
        return ", ".join(map(str, part["enum"]))
    kind = part.get("type", "value")
    names = kind if isinstance(kind, list) else [kind]
    text = " or ".join(str(part.get("format", name)) for name in names if name != "null")
    bounds = [f"{word} {part[key]:.15g}" for key, word in _BOUNDS.items() if key in part]
    return " ".join(["secret" if text == "password" else text, *bounds])


def command_line(entry: Entry) -> str:
    """Return the `vmops submit` line of an operation's example."""
    words = [f"{key}={value}" for key, value in _flat(entry.example, "")]
    wait = ["--wait"] if entry.kind == "operation" else []
    return shlex.join(["vmops", "submit", entry.task.removeprefix("vmops."), *words, *wait])


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping) and all(map(_NAME.fullmatch, value)):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value)
