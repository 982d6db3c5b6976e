"""What every request has, and how secrets travel in one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar, Literal, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from worker.errors import RequestError, SecretInClear, problems_of


class Secret(BaseModel):
    """A secret, sealed to the workers' public key (`worker.operations.secrets`); opened in the step that needs it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sealed: str = Field(description="libsodium sealed box, base64.")

    @model_validator(mode="before")
    @classmethod
    def _seal_clear_text(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        seal = (info.context or {}).get("seal")
        if seal is None:
            raise ValueError("the secret came in clear; seal it (VMOps.seal) or set allow_secrets_in_clear")
        return {"sealed": seal(value)}

    def __repr__(self) -> str:
        """Show nothing of it."""
        return "***"

    __str__ = __repr__


class Instance(BaseModel):
    """Which VM is meant: any of the three; all that are given must agree."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uuid: UUID | None = Field(
        default=None, description="OpenStack's instance uuid (other_config vmops.instance or nova_uuid)."
    )
    name: str | None = Field(default=None, min_length=1, max_length=255, description="The VM's name_label.")
    vm_uuid: UUID | None = Field(default=None, description="XenAPI's uuid of the VM.")

    @model_validator(mode="after")
    def _one_is_given(self) -> Instance:
        if self.uuid is None and self.name is None and self.vm_uuid is None:
            raise ValueError("name the VM by uuid, name or vm_uuid")
        return self

    @property
    def label(self) -> str:
        """The best name for people."""
        return self.name or str(self.vm_uuid or self.uuid)


class Place(BaseModel):
    """Where something goes to; the name of a pool alone says so too."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"pool": value} if isinstance(value, str) else value


class Request(BaseModel):
    """What every operation's request has. Unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    example: ClassVar[dict[str, Any]] = {}
    """A request that works, for `vmops tasks`."""

    pool: str | None = Field(default=None, description="Name of a configured pool; default: the only one.")

    @property
    def label(self) -> str:
        """What the operation is about, for people."""
        return ""


class InstanceRequest(Request):
    """A request about one VM."""

    instance: Instance
    on_conflict: Literal["wait", "fail"] = Field(
        default="wait", description="When another operation has the VM: wait for its end, or fail at once."
    )

    @property
    def label(self) -> str:
        """The VM's name."""
        return self.instance.label


def secret_fields(model: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted names of the fields that hold secrets; `*` stands for each item of a list."""
    return [
        found
        for name, field in model.model_fields.items()
        for found in _secrets_in(field.annotation, f"{prefix}{name}")
    ]


def _secrets_in(kind: Any, name: str) -> list[str]:
    if kind is Secret:
        return [name]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return secret_fields(kind, f"{name}.")
    inner = f"{name}.*" if get_origin(kind) is list else name
    return [found for part in get_args(kind) for found in _secrets_in(part, inner)]


def with_secrets(values: dict[str, Any], names: Iterable[str], change: Callable[[Any], Any]) -> dict[str, Any]:
    """Return a request's values with everything that stands where a secret belongs changed; `values` stay."""
    for name in names:
        values = _changed(values, name.split("."), change)
    return values


def _changed(value: Any, path: Sequence[str], change: Callable[[Any], Any]) -> Any:
    if not path:
        return change(value)
    name, *rest = path
    if name == "*":
        return [_changed(one, rest, change) for one in value] if isinstance(value, list) else value
    if isinstance(value, dict) and name in value:
        return {**value, name: _changed(value[name], rest, change)}
    return value


def label_of(model: type[Request], values: dict[str, Any]) -> str:
    """Return what a request that nobody has checked is about, for people; nothing when it is not valid."""
    try:
        return model.model_validate(values, context={"seal": lambda _: ""}).label
    except ValidationError:
        return ""


def check(model: type[Request], values: dict[str, Any], context: dict[str, Any]) -> Request:
    """Return the checked request. Raises RequestError, SecretInClear: one sentence for each thing that is wrong."""
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        texts = problems_of(error, "request", model)
        kind = SecretInClear if any("came in clear" in text for text in texts) else RequestError
        raise kind("The request is not valid: " + "; ".join(texts) + ".") from None
