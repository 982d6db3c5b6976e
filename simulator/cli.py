"""The command line: read the options, make or reopen the pool, serve until SIGTERM or Ctrl-C."""

from __future__ import annotations

import argparse
import contextlib
import logging
import resource
import shutil
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from simulator.agent.habits import KINDS
from simulator.build import Builder
from simulator.control import Control
from simulator.pool import Pool
from simulator.server import Server
from simulator.settings import SimulatorSettings

_FILES = 16384
_LAST_PORT = 65535
_UNITS = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Return bytes: `4096`, `64M`, `4GiB`."""
    number = text.strip().lower().removesuffix("ib").removesuffix("b")
    unit = _UNITS.get(number[-1:], 1)
    return int(float(number.rstrip("kmgt")) * unit)


def parse_duration(text: str) -> float:
    """Return seconds: `20ms`, `0.5`, `300s`, `5m`."""
    for suffix, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("h", 3600.0)):
        if text.endswith(suffix):
            return float(text.removesuffix(suffix)) * factor
    return float(text)


def parse_rate(text: str) -> float:
    """Return a number per second: `50`, `50/s`."""
    return float(text.removesuffix("/s"))


def parse_address(text: str) -> tuple[str, int]:
    """Return host and port: `127.0.0.1:8080`, `[::1]:0`."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal() or int(port) > _LAST_PORT:
        raise argparse.ArgumentTypeError(f"{text!r} is no HOST:PORT with a port from 0 to {_LAST_PORT}")
    return host.strip("[]"), int(port)


def read_password(path: str) -> str:
    """Return what the file at `path` holds, without the line's end."""
    try:
        password = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise argparse.ArgumentTypeError(f"{path} cannot be read: {reason}") from None
    if not password:
        raise argparse.ArgumentTypeError(f"{path} is empty")
    return password


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="vmops simulate", description="A XenServer pool on the wire, for tests.")
    _add_access(parser)
    add = parser.add_argument
    add("--hosts", type=int, default=1, metavar="N", help="hosts in the pool")
    add("--vms", type=int, default=0, metavar="N", help="running VMs to begin with")
    add("--vm-disk-size", type=parse_size, default=64 << 20, metavar="SIZE", help="root disk of those VMs (64M)")
    add("--sr-capacity", type=parse_size, default=1 << 40, metavar="SIZE", help="room in the repository (1T)")
    add(
        "--state-dir",
        type=Path,
        metavar="DIR",
        help="where the pool lives; default: a folder that is removed at the end",
    )
    add("--latency", type=parse_duration, default=0.0, metavar="TIME", help="added to every call, such as 20ms")
    add("--seed", type=int, default=0, metavar="N", help="the same seed gives the same identifiers")
    add("--tls", action="store_true", help="serve https with a generated certificate (DIR/certificate.pem)")
    add("--plugins", type=Path, action="append", default=[], metavar="DIR", help="plugins of all hosts (repeatable)")
    add("--port-file", type=Path, metavar="F", help="file that receives the port once it listens")
    add(
        "--guest-writes",
        type=parse_rate,
        default=5.0,
        metavar="N/s",
        help="writes of each running guest (5/s; 0: none)",
    )
    add("--guest-agent", choices=KINDS, metavar="KIND", help=f"what answers in every guest: {', '.join(KINDS)}")
    add("--quiet-period", type=parse_duration, default=300.0, metavar="TIME", help="the collector's pause (300s)")
    add(
        "--flush-period",
        type=parse_duration,
        default=300.0,
        metavar="TIME",
        help="between two writes of the database (300s)",
    )
    add(
        "--digest-limit",
        type=parse_size,
        default=256 << 20,
        metavar="SIZE",
        help="disks up to this are hashed at a snapshot",
    )
    add(
        "--bad-password-delay",
        type=parse_duration,
        default=2.0,
        metavar="TIME",
        help="before a wrong password is refused",
    )
    _add_times(parser)
    return parser


def _add_access(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--listen",
        type=parse_address,
        default="127.0.0.1:8080",
        metavar="HOST:PORT",
        help="address to serve; port 0 takes a free one",
    )
    add(
        "--member-address",
        action="append",
        default=[],
        metavar="A",
        help="address of the second host, and so on; default on the loopback: 127.0.0.2 and so on",
    )
    add("--user", default="root", help="XenAPI user")
    add(
        "--password-file",
        type=read_password,
        required=True,
        dest="password",
        metavar="F",
        help="file that holds the password",
    )


def _add_times(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--boot-time", type=parse_duration, default=0.5, metavar="TIME", help="until a guest reports (500ms)")
    add("--shutdown-time", type=parse_duration, default=0.2, metavar="TIME", help="a guest's clean shutdown (200ms)")
    add("--restart-time", type=parse_duration, default=0.2, metavar="TIME", help="a toolstack's restart (200ms)")
    add("--host-boot-time", type=parse_duration, default=1.0, metavar="TIME", help="a host's boot (1s)")
    add(
        "--read-timeout", type=parse_duration, default=10.0, metavar="TIME", help="between pieces of a first head (10s)"
    )
    add("--request-timeout", type=parse_duration, default=60.0, metavar="TIME", help="for a whole first head (60s)")


def _settings(options: argparse.Namespace, state_dir: Path) -> SimulatorSettings:
    host, port = options.listen
    return SimulatorSettings(
        user=options.user,
        password=options.password,
        state_dir=state_dir,
        host=host,
        port=port,
        member_addresses=tuple(options.member_address),
        hosts=options.hosts,
        vms=options.vms,
        vm_disk_size=options.vm_disk_size,
        sr_capacity=options.sr_capacity,
        latency_s=options.latency,
        seed=options.seed,
        tls=options.tls,
        guest_writes_per_s=options.guest_writes,
        guest_agent=options.guest_agent,
        boot_s=options.boot_time,
        shutdown_s=options.shutdown_time,
        quiet_period_s=options.quiet_period,
        flush_period_s=options.flush_period,
        digest_limit=options.digest_limit,
        bad_password_delay_s=options.bad_password_delay,
        toolstack_downtime_s=options.restart_time,
        host_boot_s=options.host_boot_time,
        http_read_s=options.read_timeout,
        http_total_s=options.request_timeout,
        plugins=tuple(options.plugins),
        keeps_state=options.state_dir is not None,
    )


@contextlib.contextmanager
def _state_dir(wish: Path | None) -> Iterator[Path]:
    if wish is not None:
        wish.mkdir(parents=True, exist_ok=True)
        yield wish
        return
    path = Path(tempfile.mkdtemp(prefix="simulator-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


class Running:
    """A pool that serves."""

    def __init__(self, settings: SimulatorSettings) -> None:
        self.pool = Pool(settings)
        if self.pool.is_fresh:
            Builder(self.pool).build()
        self.pool.start()
        context = None
        if settings.tls:
            from simulator.wire.tls import server_context  # noqa: PLC0415 - slow to import, rarely used

            context = server_context(settings.state_dir, [one.address for one in self.pool.hosts.all()])
        self._context = context
        self._server = Server(self.pool, Control(self.pool))

    def open(self) -> int:
        """Listen; return the port."""
        self.pool.dom0s.serve_toolstack(self._server.serve)
        port = self.pool.hosts.listen(self._server.serve, self._context)
        self.pool.consoles.relocate()
        return port

    def close(self) -> None:
        """Stop."""
        self.pool.hosts.close()
        self.pool.stop()


def _allow_many_files() -> None:
    """Let as many connections be open as the hosts accept, where the system allows it."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wish = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if _soft != resource.RLIM_INFINITY and _soft < wish:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wish, hard))


@contextlib.contextmanager
def _told_to_stop() -> Iterator[socket.socket]:
    """Yield a socket that has a byte to read once SIGTERM or Ctrl-C came, whichever thread the signal met."""
    reader, writer = socket.socketpair()
    with reader, writer:
        writer.setblocking(False)
        before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_args: None)
        try:
            yield reader
        finally:
            signal.set_wakeup_fd(before)


def main(arguments: list[str] | None = None) -> int:
    """Serve until told to stop; return the exit status."""
    options = _parser().parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with _told_to_stop() as stop, _state_dir(options.state_dir) as state_dir:
        _allow_many_files()
        try:
            settings = _settings(options, state_dir)
            running = Running(settings)
            port = running.open()
        except (OSError, ValueError) as error:
            sys.stderr.write(f"simulator: {error}\n")
            return 1
        if options.port_file is not None:
            fresh = options.port_file.with_name(options.port_file.name + ".new")
            fresh.write_text(f"{port}\n", encoding="utf-8")
            fresh.replace(options.port_file)
        scheme = "https" if settings.tls else "http"
        sys.stdout.write(f"serving {scheme}://{settings.host}:{port}\n")
        sys.stdout.flush()
        stop.recv(1)
        running.close()
    return 0
