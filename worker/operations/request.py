"""What every request has, and how secrets travel in one."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, get_args
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, model_validator

from worker.errors import RequestError, SecretInClear


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


def secret_fields(model: type[Request]) -> list[str]:
    """Return the names of the fields that hold secrets."""
    return [name for name, one in model.model_fields.items() if Secret in {one.annotation, *get_args(one.annotation)}]


def check(model: type[Request], values: dict[str, Any], context: dict[str, Any]) -> Request:
    """Return the checked request. Raises RequestError, SecretInClear: one sentence for each thing that is wrong."""
    try:
        return model.model_validate(values, context=context)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_input=False, include_context=False)
        texts = [
            f"{'.'.join(map(str, one['loc'])) or 'request'}: {one['msg'].removeprefix('Value error, ')}"
            for one in problems
        ]
        kind = SecretInClear if any("came in clear" in text for text in texts) else RequestError
        raise kind("The request is not valid: " + "; ".join(texts) + ".") from None
