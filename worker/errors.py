"""Every error vmops raises, and how those of a document are told.

    VmopsError
    |- RequestError               the caller must change something; nothing was touched
    |  |- InstanceNotFound, InstanceAmbiguous, DiskNotFound, UnknownPool, UnknownOperation
    |  |- OperationNotFound, OperationConflict, NotCancellable, SecretInClear
    |  |- InstanceExists, StorageRepositoryNotFound, NetworkNotFound, NetworkMismatch, NoValidHost, ImageTooLarge
    |  |- SecurityGroupUnknown
    |  |- InsufficientFreeMemory, InstanceLocked, WrongPowerState, TooLarge
    |  |- InstanceInRescue, InstanceNotInRescue
    |- PermanentError             trying again cannot help
    |  |- XenAPIFailure           (its kind is looked up by code, see `worker.retry`)
    |  |- PoolAuthenticationFailed, CertificateMismatch, StorageUnsupported, StorageFull
    |  |- ImageNotFound, ImageConflict, ImageFormatRefused, ImageStoreDenied, ImageStoreFull, ImageWedged
    |  |- FirewallUnsupported
    |  |- AttemptsExhausted, DeadlineExceeded, ResizeRefused, ToolMissing, InstanceGone
    |  |- GuestUnable
    |  |  |- AgentTimeout, AgentNotImplemented, AgentError
    |  |- PluginFailed
    |     |- PluginMissing, PluginOutdated, PluginRefused, PluginUnsupported, NotInDom0
    |- TransientError             the same call may succeed a little later
    |  |- PoolUnreachable, ImageStoreUnreachable, TruncatedStream, ImageNotReady, ImageDamaged
    |  |- PluginBusy, PluginTimeout, PluginInterrupted, GuestRebooted
    |- UnknownResult              the call may or may not have taken effect: look before anything else
    |- OperationFailed            an operation ended without success; what a caller's `wait()` raises
    |- LeaseLost                  this process may no longer act for the operation
    |- Cancelled                  somebody asked the operation to stop

Each message is a sentence that says what was wrong and what to do. No message carries a secret.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args

if TYPE_CHECKING:
    from pydantic import BaseModel, ValidationError


class VmopsError(Exception):
    """The root of the tree. `code` is stable and meant for programs, the text is meant for people."""

    @property
    def code(self) -> str:
        """A stable name: the class's own, or XAPI's code for a `XenAPIFailure`."""
        return type(self).__name__


class RequestError(VmopsError):
    """The request cannot be carried out as it stands; nothing was touched."""


class InstanceNotFound(RequestError):
    """No VM of the pool matches the request's instance."""


class InstanceAmbiguous(RequestError):
    """More than one VM bears the requested name."""


class DiskNotFound(RequestError):
    """The VM has no disk of the kind the request needs."""


class UnknownPool(RequestError):
    """The request names a pool that the settings do not have."""


class UnknownOperation(RequestError):
    """No operation bears this name."""

    @classmethod
    def among(cls, kind: str, name: str, known: Iterable[str]) -> UnknownOperation:
        """Return the error for a name that is none of those known: with the nearest, or else with all of them."""
        names = sorted(known)
        near = get_close_matches(name, names, 1)
        rest = f"Did you mean {near[0]}? `vmops tasks` lists all." if near else f"There are: {', '.join(names)}."
        return cls(f"No {kind} is called {name!r}. {rest}")


class OperationNotFound(RequestError):
    """The journal has no operation of this id: it never arrived, or has expired."""


class OperationConflict(RequestError):
    """Another operation holds the VM and the request said not to wait."""


class NotCancellable(RequestError):
    """The operation has ended, or has passed its point of no return."""


class SecretInClear(RequestError):
    """A secret field came unsealed and the settings do not allow that."""


class InstanceExists(RequestError):
    """A VM bears the name of the one that is to be made."""


class StorageRepositoryNotFound(RequestError):
    """The pool has no such storage repository, or no default one."""


class NetworkNotFound(RequestError):
    """The pool has no such network, or several."""


class NetworkMismatch(RequestError):
    """The network is there, and not as the request says."""


class SecurityGroupUnknown(RequestError):
    """Nobody has said what the security group allows."""


class NoValidHost(RequestError):
    """No host of the pool can run the VM."""


class ImageTooLarge(RequestError):
    """The image does not fit into the flavor."""


class InsufficientFreeMemory(RequestError):
    """No host has the memory for the VM now."""


class InstanceLocked(RequestError):
    """The VM's record forbids the operation: the instance is in rescue or suspended, or somebody protects it."""


class WrongPowerState(RequestError):
    """The VM is not in a power state from which the operation starts."""


class TooLarge(RequestError):
    """A value is longer than what has to carry it into dom0 or the guest."""


class InstanceInRescue(RequestError):
    """The instance has a rescue VM already."""


class InstanceNotInRescue(RequestError):
    """The instance is not in rescue: it has neither a rescue VM nor the lock of one."""


class PermanentError(VmopsError):
    """Trying again cannot help: the operation fails and is undone."""


class XenAPIFailure(PermanentError):
    """XAPI refused or failed a call.

    `details` is XAPI's list: the code, then its parameters, all text (xapi.md 4). Whether it is worth another try is
    decided by code in `worker.retry`, not by this class.
    """

    def __init__(self, details: list[str], call: str = "") -> None:
        self.details = [str(part) for part in details] or ["INTERNAL_ERROR"]
        self.call = call
        super().__init__(self.details, call)

    @property
    def code(self) -> str:
        """XAPI's error code, such as `VM_BAD_POWER_STATE`."""
        return self.details[0]

    @property
    def params(self) -> list[str]:
        """What followed the code; shorter lists than documented do occur (xapi.md 5.3)."""
        return self.details[1:]

    def __str__(self) -> str:
        where = f"{self.call} failed: " if self.call else ""
        return f"{where}{self.code}({', '.join(self.params)})"


class PoolAuthenticationFailed(PermanentError):
    """The pool refused the user name or password."""


class CertificateMismatch(PermanentError):
    """The pool's certificate is not the one that the settings trust."""


class StorageUnsupported(PermanentError):
    """The disk's storage repository cannot do what the operation needs."""


class StorageFull(PermanentError):
    """A storage repository has no room for what shall be put there."""


class ImageNotFound(PermanentError):
    """The image store has no such image (any more)."""


class ImageConflict(PermanentError):
    """The image exists in a state that does not accept data, or the id was used before."""


class ImageFormatRefused(PermanentError):
    """The image's content is not what its formats say."""


class ImageStoreDenied(PermanentError):
    """The image store refused our credentials or rights."""


class ImageStoreFull(PermanentError):
    """The image store has no room, or a quota is used up."""


class ImageWedged(PermanentError):
    """The image has been `saving` for too long without an upload of ours: its owner must delete it."""


class FirewallUnsupported(PermanentError):
    """The host cannot enforce what is asked for."""


class AttemptsExhausted(PermanentError):
    """A step was begun as often as the settings allow and never ended."""


class DeadlineExceeded(PermanentError):
    """A step was retried or waited until its deadline."""


class InstanceGone(PermanentError):
    """What the operation was to bring back is gone; the rest is done. Ends it, also past its point of no return."""


class GuestUnable(PermanentError):
    """The guest did not do what it was asked to: it lacks PV drivers, refused, or did not react in time."""


class ToolMissing(PermanentError):
    """The worker's machine lacks a program that the operation needs."""


class AgentTimeout(GuestUnable):
    """The guest's agent did not answer in time."""


class AgentNotImplemented(GuestUnable):
    """The guest's agent does not offer what is asked for."""


class AgentError(GuestUnable):
    """The guest's agent refused, or answered with something that is no answer."""


class PluginFailed(PermanentError):
    """A plugin of dom0 did not do what it was asked for."""


class PluginMissing(PluginFailed):
    """The host lacks vmops's pack of dom0 plugins."""


class PluginOutdated(PluginFailed):
    """The host's pack speaks another version than this worker."""


class PluginRefused(PluginFailed):
    """The plugin found the call malformed and did nothing."""


class PluginUnsupported(PluginFailed):
    """The host cannot do what the plugin was asked for, or is not set up for it."""


class NotInDom0(PluginFailed):
    """What the plugin was asked for is not there: a XenStore node, a log, a file."""


class ResizeRefused(PermanentError):
    """A disk cannot be made as small as the flavor asks, or a flavor is no target for the VM."""


class TransientError(VmopsError):
    """The same call may succeed a little later."""


class PoolUnreachable(TransientError):
    """No member of the pool answers; the call was not sent."""


class ImageStoreUnreachable(TransientError):
    """The image store does not answer, or broke off."""


class TruncatedStream(TransientError):
    """An export or download ended early; what had arrived was thrown away."""


class ImageDamaged(TransientError):
    """All that the store has of an image has arrived, and it is not the image: worth a second look, hardly a fifth."""


class ImageNotReady(TransientError):
    """The image is being written by somebody else, or has no data yet."""


class PluginBusy(TransientError):
    """Another call of the plugin works on the same thing."""


class PluginTimeout(TransientError):
    """What the plugin waited for, such as a guest's answer, did not come in time."""


class PluginInterrupted(TransientError):
    """Something killed the plugin before it had ended."""


class GuestRebooted(TransientError):
    """The VM's domain is not the one that was addressed: it was rebooted, moved or halted meanwhile."""


class UnknownResult(VmopsError):
    """The connection broke after the call had gone out: it may have taken effect."""


class OperationFailed(VmopsError):
    """An operation ended without success; the text holds the cause's code and message."""


class LeaseLost(VmopsError):
    """Another worker may act for the operation by now, so this one must not."""


class Cancelled(VmopsError):
    """The operation was asked to stop."""


#: What pydantic calls by the names of our classes.
_NO_OBJECT = {"model_type", "model_attributes_type", "dict_type"}


def problems_of(error: ValidationError, whole: str, model: type[BaseModel]) -> list[str]:
    """Return what is wrong with a document called `whole`, one phrase for each place; no value is told."""
    return [
        f"{'.'.join(map(str, one['loc'])) or whole}: {_problem(one['type'], one['msg'], one['loc'], model)}"
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]


def _problem(kind: str, text: str, place: Sequence[str | int], model: type[BaseModel]) -> str:
    if kind in _NO_OBJECT:
        return "should be an object"
    if kind != "extra_forbidden":
        return text.removeprefix("Value error, ")
    near = get_close_matches(str(place[-1]), _fields_at(place[:-1], model), 1)
    return f"there is no such field (did you mean {near[0]}?)" if near else "there is no such field"


def _fields_at(place: Sequence[str | int], model: type[BaseModel]) -> list[str]:
    """Return the fields that a part of a document may have; indices and keys of our users' are passed over."""
    models = [model]
    for name in place:
        inner = [one.model_fields[str(name)].annotation for one in models if name in one.model_fields]
        models = [found for kind in inner for found in _models_in(kind)] if inner else models
    return [name for one in models for name in one.model_fields]


def _models_in(kind: Any) -> Iterator[type[BaseModel]]:
    if hasattr(kind, "model_fields"):
        yield kind
    for part in get_args(kind):
        yield from _models_in(part)
