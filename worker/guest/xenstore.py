"""What XenStore takes: paths, values, sizes (dom0-and-guest.md 5.2, xapi.md 13.3).

Values travel as JSON in ASCII, so that no end of the line has to know an encoding and control characters are escaped;
what others have written as plain text is read as text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from worker.errors import RequestError, TooLarge

#: A message carries a path, NUL and a value in so many bytes.
MESSAGE_BYTES = 4096
#: What a guest's store keeps in one value.
VALUE_BYTES = 2048
#: A path that the guest can name, the folder of its domain included.
PATH_BYTES = 1024
#: The folders that XAPI keeps in step with `VM.xenstore_data`; the trailing slash belongs to the rule.
MIRRORED = ("vm-data/", "FIST/")
#: The folders of a domain that host and guest use to talk to each other.
SHARED = ("vm-data", "data", "attr", "control", "feature", "FIST")
#: The longest `/local/domain/<domid>/`.
HOME_BYTES = len("/local/domain/65535/")

_NAME = re.compile(r"[A-Za-z0-9_@-]+")


def check_path(path: str) -> str:
    """Return a path below a domain's folder. Raises ValueError, which says what XenStore does not take."""
    if not path:
        raise ValueError("a XenStore path has at least one name")
    if len(path) > PATH_BYTES - HOME_BYTES:
        raise ValueError(f"a XenStore path has at most {PATH_BYTES - HOME_BYTES} characters here")
    for name in path.split("/"):
        if not name:
            raise ValueError(f"{path!r} begins or ends with a slash, or has two in a row: XenStore takes none of these")
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot be part of a XenStore path: that holds A-Z, a-z, 0-9, -, _ and @ only")
    return path


def is_path(text: str) -> bool:
    """Tell whether a text can be a path."""
    try:
        check_path(text)
    except ValueError:
        return False
    return True


def check_shared(path: str) -> str:
    """Return a path in one of the folders that a guest shares. Raises ValueError."""
    if path.partition("/")[0] not in SHARED:
        raise ValueError(f"{path!r} is none of the guest's business: begin with one of {', '.join(SHARED)}")
    return path


def is_mirrored(path: str) -> bool:
    """Tell whether XAPI keeps a path of a running domain in step with `VM.xenstore_data`."""
    return f"{path}/".startswith(MIRRORED)


def text_of(value: Any) -> str:
    """Return a value as it is written: JSON, ASCII. Raises RequestError for what JSON cannot hold."""
    try:
        return json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise RequestError(f"The value cannot be written as JSON: {error}.") from None


def value_of(text: str | None) -> Any:
    """Return what a text says: JSON, or the text itself where it is none."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text


def check_size(path: str, text: str) -> str:
    """Return a text that fits into XenStore under its path. Raises TooLarge."""
    size = len(text.encode())
    most = VALUE_BYTES if is_mirrored(path) else MESSAGE_BYTES - HOME_BYTES - len(path) - 1
    if size > most:
        raise TooLarge(
            f"The value for {path} takes {size} bytes as JSON, and XenStore {most} there: give the guest less, or a "
            "config drive."
        )
    return text


def below(entries: Mapping[str, str], path: str) -> dict[str, str]:
    """Return what stands below a path: relative path -> text."""
    return {key[len(path) + 1 :]: text for key, text in entries.items() if key.startswith(f"{path}/")}


def without(entries: Mapping[str, str], paths: Iterable[str]) -> dict[str, str]:
    """Return the entries but those at and below the paths."""
    gone = tuple(paths)
    folders = tuple(f"{path}/" for path in gone)
    return {key: text for key, text in entries.items() if key not in gone and not key.startswith(folders)}
