"""Calling the plugins of a host's dom0, those of vmops's own pack (`dom0/`).

    answer = plugin.call(pool, host_ref, "vmops-console", "tail", {"dom_id": "7", ...})

    with plugin.explained(pool, host_ref, "vmops-agent"):                # parked while the guest takes its time
        text = carry_out(op, pool, "version", partial(plugin.begin, pool, host_ref, "vmops-agent", "call", args), ...)
    answer = plugin.value_of(text)

Every call names the version of the interface that this worker speaks, and a pack that speaks another one refuses it
before it does anything: so no call is needed to shake hands, and an answer is never one of the wrong version. All
functions of the pack may be repeated, so a call whose result is unknown is simply made again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from worker.errors import (
    GuestRebooted,
    NotInDom0,
    PluginBusy,
    PluginFailed,
    PluginInterrupted,
    PluginMissing,
    PluginOutdated,
    PluginRefused,
    PluginTimeout,
    PluginUnsupported,
    TooLarge,
    UnknownResult,
    VmopsError,
    XenAPIFailure,
)
from worker.xenapi.session import Session
from worker.xenapi.xapi_task import Outcome

#: What the functions take and give; `dom0/plugins/vmops_lib/__init__.py` has the other side's.
API = 1
#: Linux takes no longer argument, and XAPI hands all of a call to the plugin in one (dom0-and-guest.md 2.4).
MAX_CALL_BYTES = 131_071
#: What stands around names and values there, with the session's ref, at most.
_FRAME_BYTES = 400
_PAIR_BYTES = 46
_ESCAPED = {"&": 5, "<": 4, ">": 4, '"': 6, "'": 6}
_LONGEST_COMPLAINT = 300
_ADVICE = "Run `vmops doctor`: it says what to type to install the pack."

_CLASSES: dict[str, type[VmopsError]] = {
    "VMOPS_BAD_ARGUMENT": PluginRefused,
    "VMOPS_BUSY": PluginBusy,
    "VMOPS_COMMAND_FAILED": PluginFailed,
    "VMOPS_INTERNAL": PluginFailed,
    "VMOPS_NOT_FOUND": NotInDom0,
    "VMOPS_NO_SPACE": PluginFailed,
    "VMOPS_REBOOTED": GuestRebooted,
    "VMOPS_TIMEOUT": PluginTimeout,
    "VMOPS_TOO_LARGE": TooLarge,
    "VMOPS_UNKNOWN_FUNCTION": PluginOutdated,
    "VMOPS_UNSUPPORTED": PluginUnsupported,
    "VMOPS_VERSION": PluginOutdated,
}


def call(session: Session, host_ref: str, plugin: str, fn: str, args: Mapping[str, str]) -> Any:
    """Call a function of a plugin and return its result; for what ends within seconds.

    Raises as `begin`, `value_of` and `explained` do.
    """
    with explained(session, host_ref, plugin):
        return value_of(session.call("host.call_plugin", host_ref, plugin, fn, _checked(plugin, fn, args)))


def begin(session: Session, host_ref: str, plugin: str, fn: str, args: Mapping[str, str]) -> str:
    """Start a call on the pool and return its task's ref; for what takes longer.

    Raises TooLarge before anything is sent, ValueError for text that is not ASCII, and as `Session.call` does.
    """
    return session.call_async("host.call_plugin", host_ref, plugin, fn, _checked(plugin, fn, args))


def result(session: Session, host_ref: str, plugin: str, outcome: Outcome) -> Any:
    """Return the result of a call that `begin` started and that has ended.

    Raises as `value_of` and `explained` do, UnknownResult when XAPI has forgotten the task.
    """
    if outcome.status == "vanished":
        raise UnknownResult(f"Pool {session.pool_name!r} has forgotten a call of {plugin}: make it again.")
    with explained(session, host_ref, plugin):
        if outcome.error is not None:
            raise outcome.error
        return value_of(outcome.result)


def value_of(text: str) -> Any:
    """Return what a plugin's answer says. Raises PluginFailed for one that is not of our pack."""
    try:
        return json.loads(text)
    except ValueError:
        raise PluginFailed("A dom0 plugin did not answer with JSON: it is not vmops's own.") from None


@contextmanager
def explained(session: Session, host_ref: str, plugin: str) -> Iterator[None]:
    """Turn a plugin's failure, in any of XAPI's forms (dom0-and-guest.md 2.3), into an error that says what to do.

    PluginMissing, PluginOutdated, PluginRefused, PluginUnsupported, NotInDom0, PluginFailed, TooLarge are final;
    PluginBusy, PluginTimeout, PluginInterrupted, GuestRebooted are worth another try. A failure that is not the
    plugin's, such as HOST_OFFLINE, stays what it is.
    """
    try:
        yield
    except XenAPIFailure as failure:
        error = _explanation(session, host_ref, plugin, failure)
        if error is failure:
            raise
        raise error from failure


def _explanation(session: Session, host_ref: str, plugin: str, failure: XenAPIFailure) -> VmopsError:
    code, params = failure.code, [*failure.params, "", "", ""]
    if code == "XENAPI_MISSING_PLUGIN":
        return PluginMissing(f"Host {_name(session, host_ref)} has no plugin {plugin}. {_ADVICE}")
    if code == "UNKNOWN_XENAPI_PLUGIN_FUNCTION":
        return PluginOutdated(f"{plugin} on host {_name(session, host_ref)} is not vmops's own. {_ADVICE}")
    if code == "XENAPI_PLUGIN_FAILURE":
        return _breakdown(f"{plugin} on host {_name(session, host_ref)}", params)
    kind = _CLASSES.get(code)
    if kind is None:
        return failure
    if kind is PluginOutdated:
        return PluginOutdated(f"{plugin} on host {_name(session, host_ref)}: {params[0]} {_ADVICE}")
    return kind(params[0] or f"{plugin} failed with {code}.")


def _breakdown(where: str, params: list[str]) -> VmopsError:
    """Say how a script ended that did not answer. Its output may hold anything and is not repeated."""
    manner, _output, complaint = params[:3]
    if manner.startswith("signal"):
        return PluginInterrupted(f"{where} was ended by a {manner.removesuffix('.')}.")
    last = complaint.strip().splitlines()[-1:] if manner == "non-zero exit" else []
    said = f": {last[0][:_LONGEST_COMPLAINT]}" if last else ""
    return PluginFailed(f"{where} did not answer ({manner or 'no reason given'}){said}. {_ADVICE}")


def _name(session: Session, host_ref: str) -> str:
    """Return a host's name, for a message."""
    try:
        return repr(str(session.call("host.get_name_label", host_ref)))
    except VmopsError:
        return host_ref


def _checked(plugin: str, fn: str, args: Mapping[str, str]) -> dict[str, str]:
    """Return the arguments with the version. Raises TooLarge, ValueError."""
    complete = {**args, "api": str(API)}
    size = _FRAME_BYTES + len(fn)
    for key, value in complete.items():
        if not value.isascii():
            raise ValueError(f"{plugin}.{fn}: argument {key} is not ASCII; dom0's Python may know nothing else")
        size += _PAIR_BYTES + _length(key) + _length(value)
    if size > MAX_CALL_BYTES:
        raise TooLarge(
            f"{plugin}.{fn} cannot be called: its arguments take {size} bytes, at most {MAX_CALL_BYTES} fit."
        )
    return complete


def _length(text: str) -> int:
    """Return a text's length in XML."""
    return len(text) + sum(text.count(char) * (size - 1) for char, size in _ESCAPED.items())
