"""What the operations on XenStore take."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, Field, JsonValue, model_validator

from worker.errors import TooLarge
from worker.guest.xenstore import check_path, check_shared, check_size, text_of
from worker.operations.request import InstanceRequest

Path = Annotated[str, AfterValidator(check_path)]
Name = Annotated[str, Field(min_length=1, max_length=1024)]
"""A key that is looked for: any text, since others may have written any."""
Names = Annotated[list[Name], Field(min_length=1, max_length=1000)]

_VM: dict[str, Any] = {"name": "web01"}


def _check(entries: dict[str, Any]) -> None:
    """Raise ValueError for a value that XenStore does not hold."""
    try:
        for path, value in entries.items():
            check_size(path, text_of(value))
    except TooLarge as error:
        raise ValueError(str(error).rstrip(".")) from None


class ParamRequest(InstanceRequest):
    """Which VM's parameter record."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM}


class AddToParamRequest(ParamRequest):
    """One key of the parameter record, and its value."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "key": "vm-data/user-metadata/tier", "val": "gold"}

    key: Path = Field(description="Only keys below vm-data/ and FIST/ reach the guest.")
    val: JsonValue = Field(description="Any JSON; the guest reads it as JSON.")

    @model_validator(mode="after")
    def _fits(self) -> AddToParamRequest:
        _check({self.key: self.val})
        return self


class WriteToParamRequest(ParamRequest):
    """Several keys of the parameter record, and their values."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "mapping": {"vm-data/user-metadata/tier": "gold"}}

    mapping: dict[Path, JsonValue] = Field(min_length=1, max_length=1000, description="All are written, or none is.")

    @model_validator(mode="after")
    def _fits(self) -> WriteToParamRequest:
        _check(self.mapping)
        return self


class RemoveFromParamRequest(ParamRequest):
    """Keys of the parameter record that shall go."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "key_or_keys": ["vm-data/user-metadata/tier"]}

    key_or_keys: Name | Names = Field(description="Those that are missing are ignored.")


class ReadFromParamRequest(ParamRequest):
    """Keys of the parameter record that are read."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "keys": ["vm-data/hostname"]}

    keys: Name | Names | None = Field(default=None, description="Default: all. A missing one reads as null.")


class ReadPartialFromParamRequest(ParamRequest):
    """How the keys begin that are read from the parameter record."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "key_prefix": "vm-data/networking"}

    key_prefix: str = Field(max_length=1024, description="The beginning of the keys' text.")


class LiveRequest(InstanceRequest):
    """A place in a running domain's live record."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "path": "vm-data/user-metadata"}

    path: Annotated[Path, AfterValidator(check_shared)] = Field(
        description="Below the domain's folder: vm-data, data, attr, control, feature and what is there."
    )


class WriteRequest(LiveRequest):
    """A place in the live record, and what shall stand there."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "path": "vm-data/user-metadata/tier", "value": "gold"}

    value: JsonValue = Field(description="Any JSON; the guest reads it as JSON.")

    @model_validator(mode="after")
    def _fits(self) -> WriteRequest:
        _check({self.path: self.value})
        return self


class AddRequest(LiveRequest):
    """A map in the live record, and one entry for it."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "path": "vm-data/tags", "key": "tier", "value": "gold"}

    key: Name = Field(description="Key in the map that the node holds as JSON.")
    value: JsonValue = Field(description="Any JSON.")

    @model_validator(mode="after")
    def _fits(self) -> AddRequest:
        _check({self.path: {self.key: self.value}})
        return self


class RemoveRequest(LiveRequest):
    """A place in the live record, and what shall go from there."""

    example: ClassVar[dict[str, Any]] = {"instance": _VM, "path": "vm-data/tags", "key_or_keys": ["tier"]}

    key_or_keys: Name | Names = Field(
        description="Keys of the map that the node holds, and names of nodes below it; missing ones are ignored."
    )


def as_list(one_or_more: str | list[str]) -> list[str]:
    """Return one text, or several, as a list."""
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more
