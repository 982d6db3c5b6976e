"""`key=value` words of the command line -> the fields of a request.

A value is JSON when it reads as JSON, text otherwise; dotted keys nest (`instance.name=web01`). A secret is never a
word of the command line, where every process could read it: `password=@file` (`@-`: standard input) is read and sealed.
Inside of JSON a secret is named the same way: `files=[{"path": "/root/key", "secret_contents": "@file"}]`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from worker.cli.complaints import USAGE, Complaint
from worker.errors import RequestError
from worker.operations.request import Request, check, secret_fields, with_secrets

_KEY = re.compile(r"[A-Za-z_][\w-]*(\.[\w:-]+)*")


def request_of(
    name: str, model: type[Request], words: Sequence[str], seal: Callable[[str], dict[str, str]]
) -> dict[str, Any]:
    """Return the fields of a request for the operation `name`, checked. Raises Complaint."""
    raw = dict(_split(words))
    secrets = secret_fields(model)
    values: dict[str, Any] = {}
    for key, text in raw.items():
        _put(values, key, text if key in secrets else _value(text))
    for key in secrets:
        values = with_secrets(values, [key], partial(_secret, key, seal=seal))
    _keep_texts(values, raw, model)
    try:
        check(model, values, {})
    except RequestError as error:
        raise Complaint(f"{error} `vmops tasks {name}` lists its fields.", USAGE) from error
    return values


def _split(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    seen = set()
    for word in words:
        key, is_pair, text = word.partition("=")
        if not is_pair or not _KEY.fullmatch(key):
            raise Complaint(f"{word!r} is not of the form key=value, such as instance.name=web01.", USAGE)
        if key in seen:
            raise Complaint(f"{key} is given twice.", USAGE)
        seen.add(key)
        yield key, text


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    inner = values
    for parent in parents:
        inner = inner.setdefault(parent, {})
        if not isinstance(inner, dict):
            raise Complaint(f"{key} does not go together with the other value of {parent}.", USAGE)
    if last in inner:
        raise Complaint(f"{key} does not go together with {key}.…: give one of them.", USAGE)
    inner[last] = value


def _secret(key: str, text: Any, *, seal: Callable[[str], dict[str, str]]) -> Any:
    if not isinstance(text, str):
        return text
    if not text.startswith("@"):
        raise Complaint(
            f"{key} is a secret, and a command line can be read by others: put it into a file and give {key}=@file "
            f"(or {key}=@- to read it from standard input).",
            USAGE,
        )
    try:
        content = sys.stdin.read() if text == "@-" else Path(text[1:]).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise Complaint(f"The file {text[1:]} of {key} cannot be read: {reason}.", USAGE) from error
    secret = content.rstrip("\r\n")
    if not secret:
        raise Complaint(f"The file {text[1:]} of {key} is empty.", USAGE)
    return seal(secret)


def _keep_texts(values: dict[str, Any], raw: dict[str, str], model: type[Request]) -> None:
    """Take a value as it was written where the request wants text: a VM may be called 42 or true."""
    try:
        model.model_validate(values)
    except ValidationError as error:
        for problem in error.errors(include_url=False, include_input=False, include_context=False):
            key = ".".join(map(str, problem["loc"]))
            if problem["type"] == "string_type" and key in raw:
                *parents, last = key.split(".")
                inner = values
                for parent in parents:
                    inner = inner[parent]
                inner[last] = raw[key]
