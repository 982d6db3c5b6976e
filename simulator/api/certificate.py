"""The pool's list of trusted certificates and of revoked ones (xapi.md 16.4)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from datetime import UTC, datetime

from simulator.api.registry import Context, call
from simulator.core.database import Row
from simulator.core.failures import Failure
from simulator.model.types import EPOCH

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*\Z")
_PEM = re.compile(r"\s*-----BEGIN ([A-Z0-9 ]+)-----\s+([A-Za-z0-9+/=\s]+?)\s*-----END \1-----\s*\Z")
#: A certificate's validity in DER: two times, each UTCTime or GeneralizedTime.
_TIMES = re.compile(rb"(?:\x17\x0d(\d{12})|\x18\x0f(\d{14}))Z" * 2)


def _content(text: str, label: str) -> bytes | None:
    """Return what a PEM text holds; None for anything else."""
    match = _PEM.match(text)
    if match is None or match[1] != label:
        return None
    try:
        return base64.b64decode("".join(match[2].split()), validate=True)
    except binascii.Error:
        return None


def _times(der: bytes) -> tuple[str, str]:
    """Return from when and until when a certificate is valid."""
    found = _TIMES.search(der)
    if found is None:
        return EPOCH, EPOCH
    stamps = []
    for short, long in (found.group(1, 2), found.group(3, 4)):
        text, form = (long, "%Y%m%d%H%M%S") if long else (short, "%y%m%d%H%M%S")
        stamps.append(datetime.strptime(text.decode(), form).replace(tzinfo=UTC).strftime("%Y%m%dT%H:%M:%SZ"))
    return stamps[0], stamps[1]


def _fingerprint(der: bytes) -> str:
    return hashlib.sha256(der).digest().hex(":").upper()


def _trusted(ctx: Context, name: str) -> Row | None:
    found = [row for row in ctx.db.rows("Certificate") if row["type"] == "ca" and row["name"] == name]
    return found[0] if found else None


@call("pool.install_ca_certificate", "string", "string")
@call("pool.certificate_install", "string", "string")
def install_ca_certificate(ctx: Context, name: str, text: str) -> None:
    """Trust a certificate. Raises CERTIFICATE_NAME_INVALID, CERTIFICATE_ALREADY_EXISTS, CERTIFICATE_CORRUPT."""
    if not _NAME.match(name):
        raise Failure("CERTIFICATE_NAME_INVALID", name)
    with ctx.db as db:
        if _trusted(ctx, name) is not None:
            raise Failure("CERTIFICATE_ALREADY_EXISTS", name)
        der = _content(text, "CERTIFICATE")
        if der is None:
            raise Failure("CERTIFICATE_CORRUPT", name)
        begin, end = _times(der)
        values = {"uuid": ctx.pool.ids.uuid(), "name": name, "type": "ca", "fingerprint": _fingerprint(der)}
        db.create("Certificate", ctx.pool.ids.ref(), values | {"not_before": begin, "not_after": end})


@call("pool.uninstall_ca_certificate", "string")
@call("pool.certificate_uninstall", "string")
def uninstall_ca_certificate(ctx: Context, name: str) -> None:
    """No longer trust a certificate. Raises CERTIFICATE_DOES_NOT_EXIST."""
    with ctx.db as db:
        found = _trusted(ctx, name)
        if found is None:
            raise Failure("CERTIFICATE_DOES_NOT_EXIST", name)
        db.delete(found)


@call("pool.certificate_list", returns="string*")
def certificate_list(ctx: Context) -> list[str]:
    """Return the names of the trusted certificates."""
    with ctx.db as db:
        return [row["name"] for row in db.rows("Certificate") if row["type"] == "ca"]


@call("pool.certificate_sync")
def certificate_sync(ctx: Context) -> None:
    """Do nothing: the hosts share the one list."""
    del ctx


def _revoked(ctx: Context) -> dict[str, str]:
    found: dict[str, str] = ctx.db.notes.get("revoked", {})
    return found


@call("pool.crl_install", "string", "string")
def crl_install(ctx: Context, name: str, text: str) -> None:
    """Keep a list of revoked certificates. Raises CRL_NAME_INVALID, CRL_ALREADY_EXISTS, CRL_CORRUPT."""
    if not _NAME.match(name):
        raise Failure("CRL_NAME_INVALID", name)
    with ctx.db as db:
        if name in _revoked(ctx):
            raise Failure("CRL_ALREADY_EXISTS", name)
        if _content(text, "X509 CRL") is None:
            raise Failure("CRL_CORRUPT", name)
        db.note("revoked", _revoked(ctx) | {name: text})


@call("pool.crl_uninstall", "string")
def crl_uninstall(ctx: Context, name: str) -> None:
    """Drop a list of revoked certificates. Raises CRL_DOES_NOT_EXIST."""
    with ctx.db as db:
        if name not in _revoked(ctx):
            raise Failure("CRL_DOES_NOT_EXIST", name)
        db.note("revoked", {one: text for one, text in _revoked(ctx).items() if one != name})


@call("pool.crl_list", returns="string*")
def crl_list(ctx: Context) -> list[str]:
    """Return the names of the lists of revoked certificates."""
    with ctx.db:
        return list(_revoked(ctx))


@call("pool.enable_tls_verification", has_async=False)
def enable_tls_verification(ctx: Context) -> None:
    """Let all hosts verify each other's certificates."""
    with ctx.db as db:
        db.put(ctx.pool.pool_row, tls_verification_enabled=True)
        for host in db.rows("host"):
            db.put(host, tls_verification_enabled=True)
