"""A small file for a guest, as requests have it: text, bytes, or a secret that is opened by the step that sends it."""

from __future__ import annotations

from base64 import b64decode
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from worker.guest.agent import check_file_path, check_file_size
from worker.operations.op import Op
from worker.operations.request import Secret


class GuestFile(BaseModel):
    """A file that the guest's agent writes; its contents are given in one of three ways."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, AfterValidator(check_file_path), Field(max_length=1024)] = Field(
        description="Absolute path in the guest."
    )
    contents: str | None = Field(default=None, description="Text; with the path about 2900 bytes fit in all.")
    contents_base64: str | None = Field(default=None, description="Bytes in base64; not every agent takes such.")
    secret_contents: Secret | None = Field(
        default=None, description="Text that is a secret on its way to dom0, where whoever is root can read it."
    )

    @model_validator(mode="after")
    def _is_one_small_file(self) -> GuestFile:
        given = [one for one in (self.contents, self.contents_base64, self.secret_contents) if one is not None]
        if len(given) != 1:
            raise ValueError("give one of contents, contents_base64 and secret_contents")
        if self.secret_contents is None:
            check_file_size(self.path, self._clear())
        return self

    def data(self, op: Op) -> bytes:
        """Return the contents. Raises PermanentError for a secret that was sealed for another key."""
        return self._clear() if self.secret_contents is None else op.opened(self.secret_contents).encode()

    def _clear(self) -> bytes:
        """Return the contents unless they are secret. Raises ValueError for what is no base64."""
        if self.contents_base64 is None:
            return (self.contents or "").encode()
        try:
            return b64decode(self.contents_base64, validate=True)
        except ValueError:
            raise ValueError("contents_base64 is no base64") from None
