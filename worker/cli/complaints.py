"""What `vmops` says when something is wrong: a sentence that tells what to do, and the exit status. No traceback.

0 success, 1 the operation failed or something does not answer, 2 the command line or the request is wrong.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

from worker.errors import NotCancellable, OperationFailed, RequestError, VmopsError, problems_of

if TYPE_CHECKING:
    from redis.exceptions import RedisError

    from worker.client import VMOps
    from worker.settings import Settings

FAILED = 1
USAGE = 2


class Complaint(VmopsError):
    """Something that the person at the terminal can put right."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def complaint_about(error: Exception) -> Complaint | None:
    """Return what to say about an error, None when it is a defect of ours."""
    if isinstance(error, Complaint):
        return error
    if isinstance(error, RequestError) and not isinstance(error, NotCancellable):
        return Complaint(str(error), USAGE)
    if isinstance(error, OperationFailed):
        return Complaint(f"The operation did not succeed: {error}")
    if isinstance(error, VmopsError):
        return Complaint(str(error))
    return None


def about_journal(error: RedisError, settings: Settings) -> Complaint:
    """Say that the journal cannot be used, and where it should be."""
    from redis import exceptions

    where = f"The journal at {without_password(settings.journal_url or '')}"
    cause = str(error).rstrip(".")
    if isinstance(error, exceptions.AuthenticationError | exceptions.NoPermissionError):
        return Complaint(f"{where} refused us ({cause}): check user and password in broker_url and journal_url.")
    if isinstance(error, exceptions.ConnectionError | exceptions.TimeoutError):
        return Complaint(
            f"{where} does not answer ({cause}): start Redis, or name a running one in broker_url (VMOPS_BROKER_URL). "
            "`vmops demo` brings its own."
        )
    return Complaint(f"{where} answered with an error: {cause}.")


def broker_problem(vmops: VMOps) -> str | None:
    """Return why the broker cannot be reached, None when it can."""
    from kombu.exceptions import OperationalError

    try:
        with vmops.app.connection(connect_timeout=3) as connection:
            connection.ensure_connection(max_retries=1, interval_start=0, timeout=3)
    except (OperationalError, OSError) as error:
        return f"does not answer ({error})"
    return None


def about_idleness(vmops: VMOps) -> str:
    """Say why an operation may not have been taken by any worker: no broker, or no worker."""
    broker = without_password(vmops.settings.broker_url)
    problem = broker_problem(vmops)
    if problem is not None:
        return f"The broker at {broker} {problem}; the operation is sent when it does."
    return (
        f"No worker has taken it yet. Is one running, with the broker {broker}? `celery -A worker worker` starts one."
    )


def without_password(url: str) -> str:
    """Return a URL that may be shown."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    user, _, _ = parts.netloc.rpartition("@")[0].partition(":")
    host = parts.netloc.rpartition("@")[2]
    return urlunsplit(parts._replace(netloc=f"{user}:***@{host}"))


def read_settings() -> Settings:
    """Return the settings. Raises Complaint: which of them is wrong, and where it was read."""
    from pydantic import ValidationError
    from pydantic_settings import SettingsError

    from worker.settings import Settings, get_settings

    named = os.environ.get("VMOPS_CONFIG")
    if named is not None and not Path(named).is_file():
        raise Complaint(f"VMOPS_CONFIG names {named}, and there is no such file.", USAGE)
    source = named or "vmops.toml"
    try:
        return get_settings()
    except ValidationError as error:
        problems = "; ".join(problems_of(error, "settings", Settings))
        raise Complaint(f"The settings are not valid ({source} and VMOPS_... variables): {problems}.", USAGE) from error
    except SettingsError as error:
        raise Complaint(f"A VMOPS_... variable cannot be read: {error}.", USAGE) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Complaint(f"{source} is not valid TOML: {error}.", USAGE) from error
    except OSError as error:
        raise Complaint(
            f"A file that the settings name cannot be read: {error.filename}: {error.strerror}.", USAGE
        ) from error


@contextmanager
def open_client() -> Iterator[VMOps]:
    """Give a client of the deployment that the settings describe; says what is wrong when its journal is away."""
    from redis.exceptions import RedisError

    from worker.client import VMOps

    vmops = VMOps(read_settings())
    try:
        vmops.journal.redis.ping()
        yield vmops
    except RedisError as error:
        raise about_journal(error, vmops.settings) from error
    finally:
        vmops.close()


def pool_of(vmops: VMOps, request: dict[str, object]) -> None:
    """Raise Complaint when no pool is configured at all, which is the newcomer's case."""
    if not vmops.settings.pools and "pool" not in request:
        source = os.environ.get("VMOPS_CONFIG", "vmops.toml in this folder")
        raise Complaint(
            f"No pool is configured: put one into {source} (README.md shows how), or try `vmops demo`.", USAGE
        )
