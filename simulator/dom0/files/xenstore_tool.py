"""xenstore-read, -write, -list, -ls, -exists, -rm, -chmod, -watch: options, texts and exit codes of Xen 4.17's.

One program; it does what its name says, or its first argument (`xenstore read PATH`). It needs the standard library
only and is copied into the private root of each host for machines without the package that has the real ones.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import struct
import sys
import termios
from collections.abc import Callable, Iterator
from typing import NoReturn

(DIRECTORY, READ, GET_PERMS, WATCH, START, END) = (1, 2, 3, 4, 6, 7)
(WRITE, RM, SET_PERMS, WATCH_EVENT, ERROR, DIRECTORY_PART) = (11, 13, 14, 15, 16, 22)
_HEADER = struct.Struct("<IIII")
_MOST_BYTES = 4096
#: ls: width of a line when the output is no terminal, and what a value takes besides its text and name.
_WIDTH, _VALUE_ROOM, _PERMISSIONS_COLUMN = 80, 8, 60
_NAMED_ESCAPES = {"t": 9, "n": 10, "r": 13}
_LONG = {"-help": "h", "-flat": "f", "-prefix": "p", "-tidy": "t", "-upto": "u", "-recurse": "r", "-number": "n"}
_LETTERS = "hfnprstuR"
_KNOWN = dict(read="psR", write="sR", list="ps", ls="fps", exists="s", rm="st", chmod="urs", watch="ns")  # noqa: C408 - one line
_USAGE = {
    "read": "[-h] [-p] [-s] [-R] key [...]",
    "write": "[-h] [-s] [-R] key value [...]",
    "rm": "[-h] [-s] [-t] key [...]",
    "exists": "[-h] [-p] [-s] key [...]",
    "list": "[-h] [-p] [-s] key [...]",
    "ls": "[-h] [-f] [-p] [-s] [path]",
    "chmod": "[-h] [-u] [-r] [-s] key <mode [modes...]>",
    "watch": "[-h] [-n NR] key",
}
_NUMBER = re.compile(rb"\s*([+-]?\d+)")
_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)


class Refused(Exception):
    """The store refused; `text` is strerror's."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code
        self.text = os.strerror(getattr(errno, code, errno.EINVAL))


class Store:
    """A connection to xenstored, and at most one transaction."""

    def __init__(self, path: str) -> None:
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.connect(path)
        self._transaction = 0
        self._events: list[bytes] = []

    def ask(self, kind: int, *parts: bytes, tail: bytes = b"") -> bytes:
        """Send parts, each with a NUL, and a tail without; return the answer. Raises Refused."""
        payload = b"".join(part + b"\0" for part in parts) + tail
        if len(payload) > _MOST_BYTES:
            raise Refused("E2BIG")
        self._sock.sendall(_HEADER.pack(kind, 0, self._transaction, len(payload)) + payload)
        while True:
            answered, answer = self._receive()
            if answered == WATCH_EVENT:
                self._events.append(answer)
            elif answered == ERROR:
                raise Refused(answer.rstrip(b"\0").decode())
            else:
                return answer

    def _receive(self) -> tuple[int, bytes]:
        kind, _request, _transaction, length = _HEADER.unpack(self._exactly(_HEADER.size))
        return kind, self._exactly(length)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = self._sock.recv(size - len(data))
            if not more:
                raise Refused("EIO")
            data += more
        return data

    def event(self) -> bytes:
        """Wait for a watch; return the path."""
        while not self._events:
            kind, answer = self._receive()
            if kind == WATCH_EVENT:
                self._events.append(answer)
        return self._events.pop(0).split(b"\0")[0]

    def children(self, path: bytes) -> list[bytes]:
        """Return the names below a node. Raises Refused."""
        try:
            names = self.ask(DIRECTORY, path)
        except Refused as refused:
            if refused.code != "E2BIG":
                raise
            names = self._children_in_parts(path)
        return names.split(b"\0")[:-1]

    def _children_in_parts(self, path: bytes) -> bytes:
        names, version = b"", b""
        while True:
            seen, _, part = self.ask(DIRECTORY_PART, path, b"%d" % len(names)).partition(b"\0")
            if names and seen != version:
                names = b""
                continue
            version = seen
            if part.endswith(b"\0\0") or part == b"\0":
                return names + part[:-1]
            names += part

    def together(self, work: Callable[[], None]) -> None:
        """Do the work in a transaction; again when others came between."""
        while True:
            self._transaction = int(self.ask(START, b"").rstrip(b"\0"))
            work()
            try:
                self.ask(END, b"T")
            except Refused as refused:
                if refused.code != "EAGAIN":
                    raise
            else:
                return
            finally:
                self._transaction = 0


def sanitised(value: bytes) -> str:
    """Return a value as the tools print it: what is no printable ASCII as an escape."""
    names = {9: "\\t", 10: "\\n", 13: "\\r", 92: "\\\\"}
    spelled = []
    for byte in value:
        if byte in names:
            spelled.append(names[byte])
        elif ord(" ") <= byte <= ord("~"):
            spelled.append(chr(byte))
        else:
            spelled.append(f"\\{byte:03o}" if byte < ord("\b") else f"\\x{byte:02x}")
    return "".join(spelled)


def unsanitised(text: bytes) -> bytes:
    """Return what an argument with escapes means; a backslash at its end is a NUL."""
    return _ESCAPE.sub(_meant, text + b"\0" if len(text) - len(text.rstrip(b"\\")) & 1 else text)


def _meant(match: re.Match[bytes]) -> bytes:
    digits, octal, letter = match.groups()
    if digits:
        return bytes([int(digits, 16)])
    if octal:
        return bytes([int(octal, 8) & 255])
    return bytes([_NAMED_ESCAPES.get(letter.decode("latin-1"), letter[0])])


class Tool:
    """One run of one of the tools."""

    def __init__(self, mode: str, arguments: list[bytes], program: str) -> None:
        self.mode = mode
        self.program = program
        self.flags: set[str] = set()
        self.count = -1
        self.names: list[bytes] = []
        self._parse(arguments)
        self.store = self._connect()

    # -- arguments

    def _parse(self, arguments: list[bytes]) -> None:
        waiting = list(arguments)
        while waiting:
            word = os.fsdecode(waiting.pop(0))
            if word == "--":
                self.names += waiting
                break
            if not word.startswith("-") or word == "-":
                self.names.append(os.fsencode(word))
                continue
            self._options(word[1:], waiting)
        least = {"write": 2, "ls": 0}.get(self.mode, 1)
        if len(self.names) < least or (self.mode == "write" and len(self.names) % 2):
            self._usage()

    def _options(self, cluster: str, waiting: list[bytes]) -> None:
        if cluster.startswith("-") and cluster not in _LONG:
            self._warn(f"unrecognized option '-{cluster}'")
            return
        cluster = _LONG.get(cluster, cluster)
        for index, letter in enumerate(cluster):
            if letter not in _LETTERS:
                self._warn(f"invalid option -- '{letter}'")
            elif letter not in _KNOWN[self.mode]:
                self._usage()
            elif letter == "n":
                self._count(os.fsencode(cluster[index + 1 :]), waiting)
                return
            else:
                self.flags.add(letter)

    def _count(self, text: bytes, waiting: list[bytes]) -> None:
        if not text and not waiting:
            self._warn("option requires an argument -- 'n'")
            self._usage()
        digits = _NUMBER.match(text or waiting.pop(0))
        self.count = int(digits[1]) if digits else 0

    def _usage(self) -> NoReturn:
        name = self.program if self.program != "xenstore" else f"xenstore {self.mode}"
        self._fail(f"Usage: {name} {_USAGE[self.mode]}")

    def _connect(self) -> Store:
        path = os.environ.get("XENSTORED_PATH")
        if not path:
            path = os.environ.get("XENSTORED_RUNDIR", "/var/run/xenstored") + "/socket"
        try:
            return Store(path)
        except OSError as error:
            self._fail(f"xs_open: {error.strerror}")

    # -- output

    def _warn(self, text: str) -> None:
        sys.stdout.flush()
        sys.stderr.write(f"{self.program}: {text}\n")

    def _fail(self, text: str) -> NoReturn:
        self._warn(text)
        sys.exit(1)

    def _print(self, text: bytes) -> None:
        sys.stdout.buffer.write(text)

    # -- the tools

    def run(self) -> None:
        """Do it."""
        work: Callable[[], None] = getattr(self, f"_{self.mode}")
        if self.mode in ("write", "rm", "chmod"):
            self.store.together(work)
        else:
            work()

    def _read(self) -> None:
        for path in self.names:
            try:
                value = self.store.ask(READ, path)
            except Refused:
                self._fail(f"couldn't read path {os.fsdecode(path)}")
            self._print(path + b": " if "p" in self.flags else b"")
            self._print(value if "R" in self.flags else sanitised(value).encode() + b"\n")

    def _write(self) -> None:
        for path, value in zip(self.names[::2], self.names[1::2], strict=True):
            try:
                self.store.ask(WRITE, path, tail=value if "R" in self.flags else unsanitised(value))
            except Refused:
                self._fail(f"could not write path {os.fsdecode(path)}")

    def _list(self) -> None:
        for path in self.names:
            try:
                children = self.store.children(path)
            except Refused:
                self._fail(f"could not list path {os.fsdecode(path)}")
            for name in children:
                self._print((path + b"/" if "p" in self.flags else b"") + name + b"\n")

    def _exists(self) -> None:
        for path in self.names:
            try:
                self.store.ask(READ, path)
            except Refused:
                sys.exit(1)

    def _rm(self) -> None:
        for path in self.names:
            try:
                self.store.ask(RM, path)
                if "t" in self.flags:
                    self._tidy(path)
            except Refused:
                self._fail(f"could not remove path {os.fsdecode(path)}")

    def _tidy(self, path: bytes) -> None:
        """Remove the parents that are left without value and children."""
        for parent in _parents(path):
            if self.store.ask(READ, parent) or self.store.children(parent):
                return
            self.store.ask(RM, parent)

    def _chmod(self) -> None:
        path, modes = self.names[0], self.names[1:]
        for mode in modes:
            if mode[:1] not in (b"r", b"w", b"b", b"n"):
                self._fail(f"Invalid permission specification: '{os.fsdecode(mode[:1])}'")
        numbers = [_NUMBER.match(mode[1:]) for mode in modes]
        wish = [mode[:1] + (number[1] if number else b"0") for mode, number in zip(modes, numbers, strict=True)]
        places = [path]
        try:
            if "r" in self.flags:
                places += self._below(path)
            if "u" in self.flags:
                places += _parents(path)
            for place in places:
                self.store.ask(SET_PERMS, place, *wish)
        except Refused as refused:
            self._fail(f"Error occurred setting permissions on '{os.fsdecode(path)}': {refused.text}")

    def _below(self, path: bytes) -> Iterator[bytes]:
        for name in self.store.children(path):
            yield path.rstrip(b"/") + b"/" + name
            yield from self._below(path.rstrip(b"/") + b"/" + name)

    def _watch(self) -> None:
        for path in self.names:
            try:
                self.store.ask(WATCH, path, path)
            except Refused:
                self._fail(f"Unable to add watch on {os.fsdecode(path)}\n")
        while self.count:
            self._print(self.store.event() + b"\n")
            sys.stdout.flush()
            self.count -= 1

    # -- ls

    def _ls(self) -> None:
        width = _WIDTH
        if sys.stdout.isatty():
            size = fcntl.ioctl(1, termios.TIOCGWINSZ, b"\0" * 8)
            width = struct.unpack("HHHH", size)[1] - 2
        for path in self.names or [b"/"]:
            self._ls_below(path, 0, width)

    def _ls_below(self, path: bytes, depth: int, width: int) -> None:
        try:
            names = self.store.children(path)
        except Refused as refused:
            self._fail(f"xs_directory ({os.fsdecode(path)}): {refused.text}")
        for name in names:
            below = path.rstrip(b"/") + b"/" + name
            try:
                value = self.store.ask(READ, below)
            except Refused:
                continue
            self._print(self._line(below, value, depth, width))
            self._ls_below(below, depth + 1, width)

    def _line(self, path: bytes, value: bytes, depth: int, width: int) -> bytes:
        is_flat = "f" in self.flags
        text = sanitised(value)
        head = os.fsdecode(path) if is_flat else " " * depth + os.fsdecode(path.rpartition(b"/")[2])
        is_cut = not is_flat and len(head) + len(value) + _VALUE_ROOM > width
        shown = text[: max(0, width - _VALUE_ROOM - len(head))] + "\\..." if is_cut else text
        line = f'{head} = "{shown}"'
        if "p" in self.flags:
            if not is_cut:
                line += " "
                end = 0 if is_flat else min(_PERMISSIONS_COLUMN, width)
                line += "".join("." if column & 1 else " " for column in range(len(line), end))
            found = self.store.ask(GET_PERMS, path).split(b"\0")[:-1]
            line += f"  ({','.join(one.decode() for one in found)})"
        return os.fsencode(line) + b"\n"


def _parents(path: bytes) -> Iterator[bytes]:
    """Yield the folders above a path, nearest first, without the root."""
    while (path := path.rpartition(b"/")[0]) != b"":
        yield path


def main() -> None:
    """Run the tool that the program's name, or its first argument, names."""
    arguments = [os.fsencode(one) for one in sys.argv]
    program = os.path.basename(sys.argv[0])  # noqa: PTH119 - keeps the start of a small program short
    mode = program.removeprefix("xenstore").removeprefix("-")
    rest = arguments[1:]
    if not mode:
        if not rest:
            sys.exit("xenstore: Usage: xenstore <mode> [-h] [...]")
        mode, rest = os.fsdecode(rest[0]), rest[1:]
    if mode not in _KNOWN:
        sys.exit(f"{program}: unknown mode {mode}\n")
    Tool(mode, rest, program).run()


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
