"""Running dom0's programs: argument lists, never a shell, never a secret in a list, always a limit of time."""

import os
import subprocess

from vmops_lib import place
from vmops_lib.failures import CommandFailed, TimedOut, Unsupported

_LONGEST_COMPLAINT = 400
_SYSTEM_PATH = "/sbin:/usr/sbin:/bin:/usr/bin"


class Ended:
    """How a program ended: its exit status and what it printed."""

    def __init__(self, status: int, output: bytes, errors: bytes) -> None:
        self.status = status
        self.output = output
        self.errors = errors


def find(program: str) -> "str | None":
    """Return where a program is: a bare name is looked for on the PATH, a path below dom0's root."""
    if "/" in program:
        found = place.path(program)
        return found if os.access(found, os.X_OK) else None
    for folder in os.environ.get("PATH", _SYSTEM_PATH).split(":"):
        found = os.path.join(folder, program)
        if os.access(found, os.X_OK) and os.path.isfile(found):
            return found
    return None


def run(argv: "list[str]", stdin: bytes = b"", timeout_s: float = 30, ok: "tuple[int, ...]" = (0,)) -> Ended:
    """Run a program and return how it ended; secrets go through `stdin`.

    Raises Unsupported when this host does not have it, CommandFailed when its status is not in `ok`, TimedOut.
    """
    program = find(argv[0])
    if program is None:
        raise Unsupported("This host has no program %s." % argv[0])
    process = subprocess.Popen(
        [program, *argv[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=dict(os.environ, LC_ALL="C"),
        close_fds=True,
    )
    try:
        output, errors = process.communicate(stdin, timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise TimedOut("%s did not end within %g s." % (argv[0], timeout_s)) from None
    finally:
        _end(process)
    if process.returncode not in ok:
        said = (errors or output).decode("utf-8", "replace").strip()[-_LONGEST_COMPLAINT:]
        raise CommandFailed("%s ended with status %d: %s" % (argv[0], process.returncode, said))
    return Ended(process.returncode, output, errors)


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill what still runs, whatever interrupted us, and close what is open."""
    if process.poll() is None:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream is not None:
            stream.close()
