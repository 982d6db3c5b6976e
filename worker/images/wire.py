"""Requests to Glance on `http.client`: connections, TLS, tokens, repeats. `worker.images.glance` reads the answers."""

from __future__ import annotations

import contextlib
import html
import http.client
import json
import re
import ssl
from collections.abc import Callable, Generator
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from urllib.parse import urlsplit

import tenacity

from worker import retry
from worker.errors import CertificateMismatch, ImageStoreUnreachable

CONNECT_TIMEOUT_S = 10.0
#: Longest pause inside a request or stream; the old plugin's limit (images.md 7).
STALL_TIMEOUT_S = 90.0
#: An early refusal is on its way already when sending breaks; it comes at once or never.
EARLY_ANSWER_TIMEOUT_S = 5.0

_TRIES = 5
_RETRY_FOR_S = 15.0
_LONGEST_ANSWER_BYTES = 4 << 20
_LONGEST_REASON = 300
#: Answers of a server, or of a proxy before it, that is busy or broken for the moment (images.md 4.1).
BUSY = frozenset({408, 429, 500, 502, 503, 504})


class Auth:
    """Where tokens come from. This one has none: a Glance that is open, or behind a proxy that knows us."""

    def token(self) -> str | None:
        """Return the token to send."""
        return None

    def renew(self) -> bool:
        """Get another token after a refusal; False when there is no other."""
        return False

    def prepare_for_hours(self) -> None:
        """Make sure, as far as possible, that the next token outlives a long upload."""


class TokenAuth(Auth):
    """A token from a callable, which is asked before each request and again after a refusal."""

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source
        self._last = ""

    def token(self) -> str | None:
        """Return the token to send."""
        self._last = self._source()
        return self._last

    def renew(self) -> bool:
        """Tell whether the callable has another token by now."""
        return self._source() != self._last


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer."""

    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def reason(self) -> str:
        """Return the text of a refusal for people. Glance sends HTML, JSON or plain text, a proxy whatever it likes."""
        text = self.body.decode("utf-8", "replace")
        with contextlib.suppress(ValueError, KeyError, TypeError):
            text = str(json.loads(text)["message"])
        text = html.unescape(re.sub(r"(?s)<head>.*?</head>|<[^>]+>", " ", text))
        text = re.sub(rf"^\s*{self.status}(\s[A-Z]\S*)*\s*\n", "", text)  # the status again, as a headline
        return " ".join(text.split())[:_LONGEST_REASON] or "no reason given"


class Wire:
    """One server. Keeps no connection: a request opens its own, so none can be stale."""

    def __init__(self, url: str, auth: Auth, ca_file: Path | None, *, verify_tls: bool) -> None:
        parts = urlsplit(re.sub(r"/v2(\.\d+)?$", "", url.rstrip("/")))
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise ValueError(f"{url!r} is not the address of a Glance: write http(s)://host:9292.")
        self.url = parts.geturl()
        self.auth = auth
        self._host = parts.hostname
        self._port = parts.port or (80 if parts.scheme == "http" else 443)
        self._prefix = parts.path
        self._tls: ssl.SSLContext | None = None
        if parts.scheme == "https":
            try:
                self._tls = ssl.create_default_context(cafile=ca_file)
            except OSError as error:
                raise ValueError(f"image_store_ca_file {ca_file} holds no certificate: {error}") from error
            if not verify_tls:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE

    @property
    def is_encrypted(self) -> bool:
        """Tell whether the connections use TLS."""
        return self._tls is not None

    def connect(self) -> http.client.HTTPConnection:
        """Return an open connection. Raises ImageStoreUnreachable, CertificateMismatch."""
        connection: http.client.HTTPConnection
        if self._tls is None:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_TIMEOUT_S)
        else:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=CONNECT_TIMEOUT_S, context=self._tls
            )
        try:
            with self.errors():
                connection.connect()
                connection.sock.settimeout(STALL_TIMEOUT_S)
        except BaseException:
            connection.close()
            raise
        return connection

    def begin(self, connection: http.client.HTTPConnection, method: str, path: str, headers: dict[str, str]) -> None:
        """Send the head of a request, with the token."""
        token = self.auth.token()
        with self.errors():
            connection.putrequest(method, self._prefix + path)
            connection.putheader("User-Agent", "vmops")
            if token is not None:
                connection.putheader("X-Auth-Token", token)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders()

    def request(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> Answer:
        """Send a request that may take effect twice; repeat it for a short while when nothing answers or all is busy.

        Raises ImageStoreUnreachable, CertificateMismatch; every status but the busy ones is returned.
        """
        for attempt in tenacity.Retrying(
            stop=tenacity.stop_after_attempt(_TRIES) | tenacity.stop_after_delay(_RETRY_FOR_S),
            wait=lambda state: retry.SHORT.delay_s(state.attempt_number),
            retry=tenacity.retry_if_exception_type(ImageStoreUnreachable),
            reraise=True,
        ):
            with attempt:
                answer = self.request_once(method, path, body, content_type)
                if answer.status in BUSY:
                    raise ImageStoreUnreachable(self.busy(answer))
        return answer

    def request_once(self, method: str, path: str, body: bytes = b"", content_type: str = "") -> Answer:
        """Send a request. A refused token is renewed and the request sent again: the refusal came before any effect."""
        answer = self._exchange(method, path, body, content_type)
        if answer.status == HTTPStatus.UNAUTHORIZED and self.auth.renew():
            answer = self._exchange(method, path, body, content_type)
        return answer

    def busy(self, answer: Answer) -> str:
        """Return the sentence for a `BUSY` answer."""
        return f"The image service {self.url} answered {answer.status} ({answer.reason()}); it may work again later."

    @contextlib.contextmanager
    def errors(self) -> Generator[None]:
        """Turn what a broken connection raises into ours."""
        try:
            yield
        except ssl.SSLCertVerificationError as error:
            raise CertificateMismatch(
                f"The certificate of the image service {self.url} is not trusted ({error.verify_message}): "
                "set image_store_ca_file to the authority that signed it."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            why = str(error) or type(error).__name__
            raise ImageStoreUnreachable(
                f"The image service {self.url} does not answer or broke off ({why}): check image_store and the service."
            ) from error

    def _exchange(self, method: str, path: str, body: bytes, content_type: str) -> Answer:
        headers = {"Connection": "close"}
        if body:
            headers |= {"Content-Type": content_type, "Content-Length": str(len(body))}
        connection = self.connect()
        try:
            self.begin(connection, method, path, headers)
            with self.errors():
                if body:
                    connection.send(body)
                return read_answer(connection.getresponse())
        finally:
            connection.close()


def read_answer(response: http.client.HTTPResponse) -> Answer:
    """Read a whole answer."""
    return Answer(response.status, response.headers, response.read(_LONGEST_ANSWER_BYTES))


def early_answer(connection: http.client.HTTPConnection) -> Answer | None:
    """Return what the server said before it stopped reading; None when it said nothing.

    After a refusal mid-stream `send` fails, yet the answer can still be read (images.md 4).
    """
    try:
        connection.sock.settimeout(EARLY_ANSWER_TIMEOUT_S)
        return read_answer(connection.getresponse())
    except (OSError, http.client.HTTPException):
        return None
