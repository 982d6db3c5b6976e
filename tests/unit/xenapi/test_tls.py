"""Trust by CA file and by fingerprint, and what people see when an address or a certificate is wrong."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import xmlrpc.client
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.unit.xenapi.stub import Reply, StubHost, http_answer, pool_of, server_context, settings_for
from worker.errors import CertificateMismatch, PermanentError, PoolUnreachable, XenAPIFailure
from worker.xenapi.session import SessionPool

READ = "VM.get_record"


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def ca_file(authority: trustme.CA, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    authority.cert_pem.write_to_path(str(path))
    return path


@pytest.fixture
def certificate(authority: trustme.CA) -> trustme.LeafCert:
    return authority.issue_cert("127.0.0.1")


@pytest.fixture
def host(certificate: trustme.LeafCert, tmp_path: Path) -> Iterator[StubHost]:
    with StubHost(tls=server_context(certificate, tmp_path)) as stub:
        yield stub


def fingerprint(certificate: trustme.LeafCert) -> str:
    der = ssl.PEM_cert_to_DER_cert(certificate.cert_chain_pems[0].bytes().decode())
    return hashlib.sha256(der).hexdigest()


def test_a_certificate_of_the_ca_is_trusted_and_its_connection_kept(host: StubHost, ca_file: Path) -> None:
    with pool_of(host.url, ca_file=ca_file) as pool:
        for _ in range(5):
            assert pool.session().call("VM.start", "x") == "done"
        assert host.connections == 1


@pytest.mark.parametrize("style", ["plain", "colons", "prefix"])
def test_a_pinned_certificate_is_trusted_whatever_its_name(authority: trustme.CA, tmp_path: Path, style: str) -> None:
    certificate = authority.issue_cert("some-other-name.example")
    pin = fingerprint(certificate)
    written = {
        "plain": pin,
        "colons": ":".join(pin[at : at + 2] for at in range(0, 64, 2)).upper(),
        "prefix": f"SHA256:{pin}",
    }[style]
    with (
        StubHost(tls=server_context(certificate, tmp_path)) as host,
        pool_of(host.url, fingerprints=["0" * 64, written]) as pool,
    ):
        assert pool.session().call("VM.start", "x") == "done"


def test_another_certificate_than_the_pinned_one_is_refused(host: StubHost, certificate: trustme.LeafCert) -> None:
    with pool_of(host.url, fingerprints=["ab" * 32]) as pool, pytest.raises(CertificateMismatch) as caught:
        pool.session().call(READ, "x")
    text = str(caught.value)
    assert host.url in text
    assert "ab" * 32 in text
    assert fingerprint(certificate) in text
    assert host.calls == []


def test_a_certificate_of_another_ca_is_refused_and_its_fingerprint_told(
    host: StubHost, certificate: trustme.LeafCert, tmp_path: Path
) -> None:
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    with pool_of(host.url, ca_file=other) as pool, pytest.raises(CertificateMismatch) as caught:
        pool.session().call("VM.start", "x")
    assert host.url in str(caught.value)
    assert fingerprint(certificate) in str(caught.value)
    assert host.calls == []


def test_with_a_ca_file_the_name_counts(authority: trustme.CA, ca_file: Path, tmp_path: Path) -> None:
    certificate = authority.issue_cert("some-other-name.example")
    with (
        StubHost(tls=server_context(certificate, tmp_path)) as host,
        pool_of(host.url, ca_file=ca_file) as pool,
        pytest.raises(CertificateMismatch, match="not valid for"),
    ):
        pool.session().call(READ, "x")


def test_with_both_a_ca_file_and_a_fingerprint_both_count(host: StubHost, ca_file: Path) -> None:
    with (
        pool_of(host.url, ca_file=ca_file, fingerprints=["ab" * 32]) as pool,
        pytest.raises(CertificateMismatch, match="expected abab"),
    ):
        pool.session().call(READ, "x")


@pytest.mark.parametrize("pin", ["", "ab", "g" * 64, "a" * 63])
def test_a_fingerprint_that_is_none_is_refused_at_once(pin: str) -> None:
    with pytest.raises(PermanentError, match="not a SHA-256, 64 hex digits"):
        SessionPool("lab", settings_for("https://127.0.0.1", fingerprints=[pin]))


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_ca_file_that_cannot_be_used_is_refused_at_once(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "ca.pem"
    if content is not None:
        path.write_text(content)
    with pytest.raises(PermanentError, match=r"ca_file .* cannot be used"):
        SessionPool("lab", settings_for("https://127.0.0.1", ca_file=path))


def test_https_to_a_port_without_tls_says_so() -> None:
    with (
        StubHost() as host,
        pool_of(host.url.replace("http:", "https:"), fingerprints=["ab" * 32], connect_timeout_s=0.5) as pool,
        pytest.raises(PoolUnreachable, match=r"TLS handshake .* write http:// if it does not speak TLS"),
    ):
        pool.session().call("VM.start", "x")


def test_http_to_a_port_with_tls_says_so(host: StubHost) -> None:
    with (
        pool_of(host.url.replace("https:", "http:")) as pool,
        pytest.raises(PoolUnreachable, match="if that port speaks TLS, write https:// in url"),
    ):
        pool.session().call("VM.start", "x")


def test_a_handshake_that_never_comes_ends_with_the_time_to_connect() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        pool_of(
            f"https://127.0.0.1:{silent.getsockname()[1]}", fingerprints=["ab" * 32], connect_timeout_s=0.3
        ) as pool,
        pytest.raises(PoolUnreachable, match=r"broke off the TLS handshake .timed out"),
    ):
        pool.session().call("VM.start", "x")


def test_a_refused_connection_names_pool_address_and_advice() -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        url = f"http://127.0.0.1:{gone.getsockname()[1]}"
    with pool_of(url) as pool, pytest.raises(PoolUnreachable) as caught:
        pool.session().call("VM.start", "x")
    assert str(caught.value) == (
        f"Pool 'lab': {url} refuses connections. Check that the host is up and that url names the right port."
    )


def test_an_unknown_host_name_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr("socket.create_connection", fail)  # tests look no names up
    with (
        pool_of("https://xen1.example", fingerprints=["ab" * 32]) as pool,
        pytest.raises(PoolUnreachable, match=r"the host name 'xen1\.example' cannot be resolved\. Check url"),
    ):
        pool.session().call("VM.start", "x")


def test_something_that_is_not_http_says_so() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def greet() -> None:
            sock, _ = server.accept()
            with sock:
                sock.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")
                sock.recv(4096)

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pool_of(url) as pool, pytest.raises(PoolUnreachable, match="the answer is not HTTP"):
            pool.session().call("VM.start", "x")
        thread.join()


@pytest.mark.parametrize(
    ("status", "told"),
    [
        ("301 Moved Permanently", r"answers calls with HTTP 301 .* https://"),
        ("403 Forbidden", "refuses calls with HTTP 403"),
        ("404 Not Found", "refuses calls with HTTP 404"),
    ],
)
def test_a_server_that_is_no_xapi_is_a_permanent_error(status: str, told: str) -> None:
    with StubHost() as host:
        host.answers["session.login_with_password"] = Reply(http_answer(b"<html>", status))
        with pool_of(host.url) as pool, pytest.raises(PermanentError, match=told):
            pool.session().call(READ, "x")


@pytest.mark.parametrize(
    ("body", "error", "told"),
    [
        (xmlrpc.client.dumps(([],), methodresponse=True), PermanentError, "is not a XAPI. Check url"),
        (xmlrpc.client.dumps(xmlrpc.client.Fault(1, "no such method")), XenAPIFailure, "INTERNAL_ERROR.no such method"),
    ],
    ids=["no-status", "fault"],
)
def test_xml_rpc_that_is_not_xapis_is_told(body: str, error: type[Exception], told: str) -> None:
    with StubHost() as host:
        host.answers["session.login_with_password"] = Reply(http_answer(body.encode()))
        with pool_of(host.url) as pool, pytest.raises(error, match=told):
            pool.session().call(READ, "x")


@pytest.mark.parametrize("url", ["https://", "http://host:99999", "http://root:pw@host"])
def test_an_address_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(PermanentError) as caught:
        SessionPool("lab", settings_for(url, fingerprints=["ab" * 32]))
    assert "pw" not in str(caught.value).replace("password", "")
