"""The hosts of a simulated pool one by one: what each answers on its own address."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from tests.support.simulator import Client, SimulatorProcess, XenFailure

DEADLINE_S = 60.0


def wait_for(claim: Callable[[], Any], what: str = "the claim") -> Any:
    """Wait until something is true; return it. Broken connections count as not yet."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(OSError, http.client.HTTPException, XenFailure):
            value = claim()
            if value:
                return value
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what} did not come true")
        time.sleep(0.02)


@dataclass(frozen=True)
class Host:
    """One host, reached on its own address; it is enough of a SimulatorProcess for a Client."""

    simulator: SimulatorProcess
    uuid: str
    name: str
    url: str

    @property
    def password(self) -> str:
        return self.simulator.password

    @property
    def address(self) -> str:
        return urlsplit(self.url).hostname or ""

    def connect(self, timeout_s: float = 60) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.address, self.simulator.port, timeout=timeout_s)

    def client(self) -> contextlib.AbstractContextManager[Client]:
        """Log in, and out at the end."""
        return contextlib.closing(Client(self))  # type: ignore[arg-type]  # all that a client needs

    @contextlib.contextmanager
    def anonymous(self) -> Iterator[Client]:
        """A client that has not logged in."""
        client = Client.__new__(Client)
        client.ref = ""
        client._connection = self.connect()
        try:
            yield client
        finally:
            client._connection.close()

    @contextlib.contextmanager
    def local(self) -> Iterator[Client]:
        """A client with a local session, which any host opens."""
        with self.anonymous() as client:
            client.ref = client.raw("session.slave_local_login_with_password", "root", self.password)
            yield client

    def refusal(self, method: str, *params: Any) -> list[str]:
        """Call without session argument; return the details of the failure, none when there was none."""
        with self.anonymous() as client:
            try:
                client.raw(method, *params)
            except XenFailure as failure:
                return failure.details
        return []

    def login_refusal(self) -> list[str]:
        """Log in and out; return the details of the failure, none when there was none."""
        with self.anonymous() as client:
            try:
                client.ref = client.raw("session.login_with_password", "root", self.password, "1.0", "tests")
                client("session.logout")
            except XenFailure as failure:
                return failure.details
        return []

    def is_listening(self) -> bool:
        with contextlib.closing(self.connect(5)) as connection:
            try:
                connection.connect()
            except OSError:
                return False
        return True

    @contextlib.contextmanager
    def toolstack_ending(self) -> Iterator[None]:
        """Wait at the end of the block until the toolstack has ended that ran at its beginning; it may be back then."""
        with self.anonymous() as client:
            ref = client.raw("session.slave_local_login_with_password", "root", self.password)
        yield
        wait_for(
            lambda: self.refusal("host.is_in_emergency_mode", ref) == ["SESSION_INVALID", ref],
            f"{self.name} forgot its local sessions",
        )

    def control(self, method: str, path: str, body: object = None) -> Any:
        """Ask the control plane at this host."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, f"/simulator/{path}", None if body is None else json.dumps(body))
            response = connection.getresponse()
            answer = json.loads(response.read())
        assert response.status == http.HTTPStatus.OK, answer
        return answer

    def order(self, host: Host, action: str, **more: object) -> None:
        """Do something to a host, asked for at this one."""
        self.control("POST", f"hosts/{host.uuid}", {"action": action, **more})

    def state(self, host: Host) -> str:
        """Return how another host is, asked for at this one."""
        return str(self.control("GET", "hosts")[host.uuid]["state"])

    def wait_until(self, host: Host, state: str) -> None:
        """Wait until another host is in a state, asked for at this one."""
        wait_for(lambda: self.state(host) == state, f"{host.name} {state}")


def hosts_of(simulator: SimulatorProcess) -> list[Host]:
    """Return the hosts of a pool that listen; the first is the one that was the master at first."""
    found = simulator.control("GET", "hosts")
    return [Host(simulator, uuid, one["name"], one["url"]) for uuid, one in found.items() if one["url"]]
