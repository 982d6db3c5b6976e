"""The host's side of the agent protocol, as plain as it can be: what these tests see must not depend on the product."""

from __future__ import annotations

import base64
import hashlib
import json
import time
import uuid
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tests.unit.simulator.dom0_support import WireClient

PRIME, BASE = 162259276829213363391578010288127, 5
DIRECTORY, READ, WATCH, WRITE, RM = 1, 2, 4, 11, 13
PATIENCE_S = 30
_LOOK_S = 0.02


def encrypted(shared: int, text: bytes, *, padded: bool = True) -> str:
    """Encrypt as `openssl enc -aes-128-cbc -A -a -nosalt -md md5` does with the number's decimal text."""
    secret = str(shared).encode()
    key = hashlib.md5(secret).digest()  # noqa: S324 - the protocol's
    start = hashlib.md5(key + secret).digest()  # noqa: S324 - as above
    left = 16 - len(text) % 16
    encryptor = Cipher(algorithms.AES128(key), modes.CBC(start)).encryptor()
    blocks = encryptor.update(text + bytes([left]) * left if padded else text) + encryptor.finalize()
    return base64.b64encode(blocks).decode()


class Peer:
    """Talks to the agent of one domain through dom0's XenStore."""

    def __init__(self, wire: WireClient, domid: int) -> None:
        self.wire = wire
        self.folder = f"/local/domain/{domid}"

    def close(self) -> None:
        self.wire.sock.close()

    # -- nodes

    def path(self, node: str) -> bytes:
        return f"{self.folder}/{node}".encode() + b"\0"

    def read(self, node: str) -> bytes | None:
        """Return a node's value, None for a node that is not there."""
        answer = self.wire.ask(READ, self.path(node))
        return None if answer == b"ENOENT\0" else answer

    def write(self, node: str, value: str | bytes) -> None:
        data = value if isinstance(value, bytes) else value.encode()
        assert self.wire.ask(WRITE, self.path(node) + data) == b"OK\0"

    def remove(self, node: str) -> None:
        assert self.wire.ask(RM, self.path(node)) == b"OK\0"

    def names(self, node: str) -> list[str]:
        answer = self.wire.ask(DIRECTORY, self.path(node))
        return [] if answer == b"ENOENT\0" else answer.decode().split("\0")[:-1]

    # -- requests

    def put(self, name: str, value: Any = "") -> str:
        """Write a request; return its id."""
        return self.put_text(json.dumps({"name": name, "value": value}))

    def put_text(self, text: str) -> str:
        identifier = str(uuid.uuid4())
        self.write(f"data/host/{identifier}", text)
        return identifier

    def is_waiting(self, identifier: str) -> bool:
        return self.read(f"data/host/{identifier}") is not None

    def answer_text(self, identifier: str) -> bytes:
        """Wait for an answer, take it and return its text."""
        deadline = time.monotonic() + PATIENCE_S
        while (text := self.read(f"data/guest/{identifier}")) is None:
            if time.monotonic() > deadline:
                raise TimeoutError("the agent never answered")
            time.sleep(_LOOK_S)
        self.remove(f"data/guest/{identifier}")
        return text

    def answer(self, identifier: str) -> tuple[Any, str]:
        """Wait for an answer; return its code and its message."""
        found = json.loads(self.answer_text(identifier))
        assert found.keys() == {"returncode", "message"}
        return found["returncode"], found["message"]

    def ask(self, name: str, value: Any = "") -> tuple[Any, str]:
        """Make a request; return the code and the message of its answer."""
        return self.answer(self.put(name, value))

    def exchange(self, private: int = 2**79 + 1) -> int:
        """Exchange keys; return the shared number."""
        code, message = self.ask("keyinit", str(pow(BASE, private, PRIME)))
        assert code == "D0"
        return pow(int(message.removesuffix("\\r\\n")), private, PRIME)

    def inject(self, path: str, content: bytes) -> tuple[Any, str]:
        """Inject a file."""
        return self.ask("injectfile", base64.b64encode(path.encode() + b"," + content).decode())
