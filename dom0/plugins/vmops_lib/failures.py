"""How a function fails: a code for programs and a sentence for people. XAPI hands both to the caller.

No sentence repeats an argument that may be a secret.
"""


class Failure(Exception):
    """A function could not do what it was asked for; the classes below say why."""

    code = "VMOPS_INTERNAL"


class BadArgument(Failure):
    """The call itself is wrong: nothing was done."""

    code = "VMOPS_BAD_ARGUMENT"


class UnknownFunction(Failure):
    """The pack has no such function."""

    code = "VMOPS_UNKNOWN_FUNCTION"


class WrongVersion(Failure):
    """The caller speaks another version than this pack."""

    code = "VMOPS_VERSION"


class TooLarge(Failure):
    """A value is longer than what has to carry it."""

    code = "VMOPS_TOO_LARGE"


class NotFound(Failure):
    """What was asked for is not there."""

    code = "VMOPS_NOT_FOUND"


class TimedOut(Failure):
    """It did not happen in time; asking again is safe."""

    code = "VMOPS_TIMEOUT"


class Rebooted(Failure):
    """The domain that was meant is gone; its VM may have another one by now."""

    code = "VMOPS_REBOOTED"


class Busy(Failure):
    """Another call works on the same thing; asking again later is safe."""

    code = "VMOPS_BUSY"


class Unsupported(Failure):
    """The host cannot do that, or is not set up for it."""

    code = "VMOPS_UNSUPPORTED"


class NoSpace(Failure):
    """The disk of dom0 has no room."""

    code = "VMOPS_NO_SPACE"


class CommandFailed(Failure):
    """A program of dom0 refused."""

    code = "VMOPS_COMMAND_FAILED"
