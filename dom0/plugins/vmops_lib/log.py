"""One line in syslog for each call: what was asked, how it ended, how long it took; no value that may be a secret."""

import os
import socket

from vmops_lib import place

#: Arguments whose values may be seen.
_SHOWN = ("dom_id", "vm_uuid", "vif_uuid", "sr_uuid", "request_id", "image_id", "path", "offset", "size", "timeout")
_LONGEST_VALUE = 200
#: Facility daemon, severity info.
_PRIORITY = 30
_HIDDEN = "***"
#: Shorter texts are part of ordinary words.
_SHORTEST_SECRET = 4


def shown(args: "dict[str, str]") -> str:
    """Return arguments as the log has them: the values of most are left out."""
    parts = [key + "=" + (args[key][:_LONGEST_VALUE] if key in _SHOWN else _HIDDEN) for key in sorted(args)]
    return " ".join(ascii(part)[1:-1] for part in parts)


def redacted(text: str, args: "dict[str, str]") -> str:
    """Return a text without the values of arguments that are not shown in the log either."""
    hidden = [value for key, value in args.items() if key not in _SHOWN and len(value) >= _SHORTEST_SECRET]
    for value in sorted(hidden, key=len, reverse=True):
        for spelled in (value, repr(value)[1:-1]):
            text = text.replace(spelled, _HIDDEN)
    return text


def say(program: str, text: str) -> None:
    """Send a line to syslog; nobody misses it where there is none."""
    line = "<%d>%s[%d]: %s" % (_PRIORITY, program, os.getpid(), text)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
    try:
        sock.sendto(line.encode("ascii", "backslashreplace"), place.path("/dev/log"))
    except OSError:
        pass
    finally:
        sock.close()
