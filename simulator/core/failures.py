"""The two ways a simulated call can end badly."""

from __future__ import annotations


class Failure(Exception):
    """An XenAPI error: the code and its parameters, all text (xapi.md 4)."""

    def __init__(self, code: str, *params: str) -> None:
        self.details = [code, *params]
        super().__init__(*self.details)

    @property
    def code(self) -> str:
        """XAPI's error code, such as `VM_BAD_POWER_STATE`."""
        return self.details[0]


class Abandoned(BaseException):
    """The toolstack that ran this thread was killed; the thread must touch nothing more.

    It is no `Exception`, so that no handler of failures takes it for one.
    """


def internal_error(text: str) -> Failure:
    """Return the failure that XAPI makes of an unexpected exception."""
    return Failure("INTERNAL_ERROR", text)


def handle_invalid(class_name: str, ref: str) -> Failure:
    """Return the failure for a reference to nothing."""
    return Failure("HANDLE_INVALID", class_name, ref)


def in_progress(class_name: str, ref: str, operation: str, task_ref: str) -> Failure:
    """Return the failure that makes a call wait for the object (xapi.md 4.2)."""
    return Failure("OTHER_OPERATION_IN_PROGRESS", class_name, ref, operation, task_ref)
