"""What plugins of dom0 import as `XenAPI`: sessions, and `xapi_local()` for the toolstack of their own host.

It works with every Python from 3.6 on, since a plugin's first line chooses that.
"""

import http.client
import os
import socket
import xmlrpc.client

#: Where XAPI listens in dom0; below the private root when there is one.
_LOCAL_SOCKET = "/var/lib/xcp/xapi"


class Failure(Exception):
    """A call failed; `details` is the code and its parameters."""

    def __init__(self, details: "list[str]") -> None:
        Exception.__init__(self, details)
        self.details = details

    def __str__(self) -> str:
        return str(self.details)


class _LocalConnection(http.client.HTTPConnection):
    """HTTP on XAPI's unix socket."""

    def connect(self) -> None:
        """Connect; in a private root to where the link points, for its own name may be too long for a socket."""
        path = os.environ.get("VMOPS_DOM0_ROOT", "") + _LOCAL_SOCKET
        if os.path.islink(path):  # noqa: PTH114 - a small program
            path = os.readlink(path)  # noqa: PTH115 - as above
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.connect(path)


class _LocalTransport(xmlrpc.client.Transport):
    """XML-RPC on XAPI's unix socket."""

    def make_connection(self, host: "tuple[str, dict[str, str]] | str") -> http.client.HTTPConnection:
        """Return a connection."""
        del host
        return _LocalConnection("localhost")


class Session:
    """Calls as `session.xenapi.VM.get_record(ref)`; `session.login_with_password(user, password)` to begin one."""

    def __init__(self, uri: str, transport: "xmlrpc.client.Transport | None" = None) -> None:
        self._server = xmlrpc.client.ServerProxy(uri, transport=transport, allow_none=True)
        self._session = ""
        self.xenapi = _Calls(self, "")

    @property
    def handle(self) -> str:
        """The session's reference."""
        return self._session

    def xenapi_request(self, name: str, params: "tuple[object, ...]") -> object:
        """Call with the session. Raises Failure."""
        method = self._server.__getattr__(name)
        return _value(method(self._session, *params))  # type: ignore[arg-type] # what cannot be sent raises

    def login_with_password(self, *params: str) -> None:
        """Begin a session. Raises Failure."""
        answer = self._server.session.login_with_password(*params)
        self._session = str(_value(answer))  # type: ignore[arg-type] # as above

    def logout(self) -> None:
        """End the session. Raises Failure."""
        self.xenapi_request("session.logout", ())
        self._session = ""


class _Calls:
    """The name of a call, as far as it is said."""

    def __init__(self, session: Session, name: str) -> None:
        self._said = (session, name)

    def __getattr__(self, name: str) -> "_Calls":
        session, before = self._said
        return _Calls(session, before + "." + name if before else name)

    def __call__(self, *params: object) -> object:
        session, name = self._said
        if name in ("login_with_password", "logout"):
            return getattr(session, name)(*params)
        return session.xenapi_request(name, params)


def _value(answer: "dict[str, object]") -> object:
    if answer["Status"] != "Success":
        raise Failure(answer["ErrorDescription"])  # type: ignore[arg-type] # a list of texts
    return answer["Value"]


def xapi_local() -> Session:
    """Return a session with the toolstack of this host, not logged in."""
    return Session("http://localhost/", _LocalTransport())
