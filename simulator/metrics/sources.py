"""The data sources of VMs, hosts and storage repositories: XAPI's names, units and defaults (xapi.md 15).

VIF rates are as the guest sees them. The disk that a guest writes to shows the bytes that it writes; all other figures
are made up, small and moving, and agree with each other (`cpu_usage` is the mean of the CPUs, a total the sum).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from simulator.metrics.curves import STEADY, Vector, scaled, share, total, wave

_MIB = 1 << 20
_GUEST_WRITE = 4096
_READ_SIZE = 16384


@dataclass(frozen=True, slots=True)
class Source:
    """One data source of one object."""

    name: str
    description: str
    units: str
    weights: Vector
    """Over the base functions, then over the further sums of the object's timeline."""
    is_counter: bool = True
    """Whether samples are of a counter (DERIVE) or of a level (GAUGE)."""
    maximum: float = math.inf
    is_standard: bool = True
    """Whether it is recorded without being asked for."""
    since: float = 0.0
    """Before this moment there was nothing to measure."""
    start: float = 0.0
    """What the counter would have shown when it began."""

    @property
    def kind(self) -> str:
        """The type in a round-robin document."""
        return "DERIVE" if self.is_counter else "GAUGE"


@dataclass(frozen=True, slots=True)
class Device:
    """A virtual disk or interface of a VM."""

    name: str
    """`vif_0` or `vbd_xvda`."""
    is_written: bool = False
    """Whether it is the disk that the guest keeps writing to."""
    since: float = 0.0
    start: tuple[float, ...] = ()
    """The vector at its moment of attachment, when it came after the domain."""


@dataclass(frozen=True, slots=True)
class VmShape:
    """What a VM's data sources depend on. The further sums of its timeline are bytes written, and memory."""

    key: str
    cpus: int
    memory: int
    reports_memory: bool
    devices: tuple[Device, ...]


def vm_sources(shape: VmShape) -> list[Source]:
    """Return a VM's data sources."""
    key = shape.key
    cpus = [_cpu_curve(f"{key}/cpu{number}", 0.02, 0.35) for number in range(max(1, shape.cpus))]
    usage = scaled(total(cpus), 1 / len(cpus))
    found = [
        Source(f"cpu{number}", f"CPU{number} usage", "(fraction)", cpu, maximum=1.0) for number, cpu in enumerate(cpus)
    ]
    memory = _level(1)
    found += [
        Source("cpu_usage", "Domain CPU usage", "(fraction)", usage, maximum=1.0),
        Source("memory", "Memory currently allocated to VM", "B", memory, is_counter=False),
        Source("memory_target", "Target of VM balloon driver", "B", memory, is_counter=False),
    ]
    if shape.reports_memory:
        free = scaled(wave(f"{key}/free", 0.15), (0.3 + 0.4 * share(f"{key}/free")) * shape.memory / 1024)
        found.append(
            Source("memory_internal_free", "Memory used as reported by the guest agent", "KiB", free, is_counter=False)
        )
    found += _runstates(usage, len(cpus))
    for device in shape.devices:
        found += _vif(key, device) if device.name.startswith("vif_") else _vbd(key, device)
    return found


def _cpu_curve(key: str, least: float, most: float) -> Vector:
    return scaled(wave(key), least + (most - least) * share(key) ** 3)


def _level(position: int, *, count: int = 2) -> Vector:
    """Return the weights that pick one further sum, as it is."""
    sums = [0.0] * count
    sums[position] = 1.0
    return (*scaled(STEADY, 0.0), *sums)


def _runstates(usage: Vector, cpus: int) -> list[Source]:
    full = scaled(usage, 1.0 if cpus == 1 else 0.25)
    partial = scaled(usage, 0.0 if cpus == 1 else 0.75)
    nothing = scaled(usage, 0.0)
    shares = (
        ("fullrun", "Fraction of time that all VCPUs are running", full),
        ("full_contention", "Fraction of time that all VCPUs are runnable (i.e., waiting for CPU)", nothing),
        ("concurrency_hazard", "Fraction of time that some VCPUs are running and some are runnable", nothing),
        ("blocked", "Fraction of time that all VCPUs are blocked or offline", total([STEADY, scaled(usage, -1.0)])),
        ("partial_run", "Fraction of time that some VCPUs are running and some are blocked", partial),
        ("partial_contention", "Fraction of time that some VCPUs are runnable and some are blocked", nothing),
    )
    return [Source(f"runstate_{name}", text, "(fraction)", curve, maximum=1.0) for name, text, curve in shares]


def _of(device: Device, source: Source) -> Source:
    start = math.fsum(weight * one for weight, one in zip(source.weights, device.start, strict=False))
    name = f"{device.name}_{source.name}"
    return replace(source, name=name, since=device.since, start=start if source.is_counter else 0.0)


def _vif(key: str, device: Device) -> list[Source]:
    number = device.name.removeprefix("vif_")
    found = []
    for way, text, most in (("rx", "received", 60e3), ("tx", "transmitted", 25e3)):
        name = f"{key}/{device.name}/{way}"
        curve = scaled(wave(name), 400 + most * share(name) ** 3)
        sentence = f"Bytes per second {text} on virtual interface number '{number}'"
        found.append(Source(way, sentence, "B/s", curve))
        errors = f"{'Receive' if way == 'rx' else 'Transmit'} errors per second on virtual interface number '{number}'"
        found.append(Source(f"{way}_errors", errors, "err/s", scaled(STEADY, 0.0), is_standard=False))
    return [_of(device, source) for source in found]


def _vbd(key: str, device: Device) -> list[Source]:
    name = device.name.removeprefix("vbd_")
    reading = f"{key}/{device.name}/read"
    read = (*scaled(wave(reading), 300 + 40e3 * share(reading) ** 3), 0.0, 0.0)
    writing = f"{key}/{device.name}/write"
    made_up = (*scaled(wave(writing), 100 + 8e3 * share(writing) ** 3), 0.0, 0.0)
    write = _level(0) if device.is_written else made_up
    found = [
        Source("read", f"Reads from device '{name}' in bytes per second", "B/s", read),
        Source("write", f"Writes to device '{name}' in bytes per second", "B/s", write),
        *_io(f"{key}/{device.name}", f"device '{name}'", read, write),
    ]
    return [_of(device, source) for source in found]


def _io(key: str, what: str, read: Vector, write: Vector) -> list[Source]:
    """Return the finer figures of a disk or repository, from its bytes read and written."""
    requests = scaled(read, 1 / _READ_SIZE), scaled(write, 1 / _GUEST_WRITE)
    waits = scaled(wave(f"{key}/wait"), 0.01)
    return [
        Source("read_latency", f"Reads from {what} in microseconds", "us", _latency(key, "read"), is_counter=False),
        Source("write_latency", f"Writes to {what} in microseconds", "us", _latency(key, "write"), is_counter=False),
        Source("iops_read", f"Read requests per second to {what}", "requests/s", requests[0]),
        Source("iops_write", f"Write requests per second to {what}", "requests/s", requests[1]),
        Source("iops_total", f"I/O requests per second to {what}", "requests/s", total(list(requests))),
        Source("io_throughput_read", f"Data read from {what}", "MiB/s", scaled(read, 1 / _MIB)),
        Source("io_throughput_write", f"Data written to {what}", "MiB/s", scaled(write, 1 / _MIB)),
        Source("io_throughput_total", f"All I/O to {what}", "MiB/s", scaled(total([read, write]), 1 / _MIB)),
        Source("iowait", f"Total I/O wait time per second on {what}", "s/s", waits),
        Source("inflight", f"Number of I/O requests currently in flight to {what}", "requests",
               scaled(wave(f"{key}/inflight"), 0.2), is_counter=False, is_standard=False),
        Source("avgqu_sz", f"Average I/O queue size of {what}", "requests", scaled(wave(f"{key}/queue"), 0.1),
               is_counter=False, is_standard=False),
    ]  # fmt: skip


def _latency(key: str, way: str) -> Vector:
    return scaled(wave(f"{key}/{way}_latency"), 150 + 600 * share(f"{key}/{way}_latency"))


@dataclass(frozen=True, slots=True)
class HostShape:
    """What a host's data sources depend on.

    The further sums of its timeline are KiB used, running VMs, the part of its CPUs that they use, and their bytes
    written.
    """

    key: str
    cpus: int
    total_kib: int
    interfaces: tuple[str, ...]
    repositories: tuple[str, ...]
    """Uuids of the storage repositories that it has plugged; guests write to the first."""


_USED, _RUNNING, _LOAD, _WRITTEN = range(4)
HOST_SUMS = 4


def _host_curve(curve: Vector, position: int, factor: float) -> Vector:
    return (*curve, *scaled(_level(position, count=HOST_SUMS)[len(STEADY) :], factor))


def host_sources(shape: HostShape) -> list[Source]:
    """Return a host's data sources."""
    key = shape.key
    cpus = [_host_curve(_cpu_curve(f"{key}/cpu{n}", 0.01, 0.1), _LOAD, 1.0) for n in range(max(1, shape.cpus))]
    found = [
        Source(f"cpu{number}", f"Physical cpu usage for cpu {number}", "(fraction)", cpu, maximum=1.0)
        for number, cpu in enumerate(cpus)
    ]
    average = scaled(total(cpus), 1 / len(cpus))
    load = _host_curve(scaled(wave(f"{key}/load"), 0.15), _LOAD, float(len(cpus)))
    found += [
        Source("cpu_avg", "Average physical cpu usage", "(fraction)", average, maximum=1.0),
        Source("loadavg", "Domain0 loadavg", "(fraction)", load, is_counter=False),
        *_host_memory(shape),
        *_toolstack(key),
    ]
    found += _interfaces(shape)
    for position, uuid in enumerate(shape.repositories):
        for source in _repository_io(key, uuid, is_written=position == 0):
            found.append(replace(source, name=f"{source.name}_{uuid.split('-', 1)[0]}"))
    return found


def _host_memory(shape: HostShape) -> list[Source]:
    whole = (*scaled(STEADY, float(shape.total_kib)), *(0.0,) * HOST_SUMS)
    free = _host_curve(scaled(STEADY, float(shape.total_kib)), _USED, -1.0)
    running = _level(_RUNNING, count=HOST_SUMS)
    nothing = scaled(STEADY, 0.0)
    return [
        Source("memory_total_kib", "Total amount of memory in the host", "KiB", whole, is_counter=False),
        Source("memory_free_kib", "Total amount of free memory", "KiB", free, is_counter=False),
        Source("memory_reclaimed", "Host memory reclaimed by squeezing", "B", nothing, is_counter=False),
        Source("memory_reclaimed_max", "Host memory that could be reclaimed by squeezing", "B", nothing,
               is_counter=False),
        Source("running_domains", "Total number of running domains", "", running, is_counter=False,
               is_standard=False),
    ]  # fmt: skip


def _toolstack(key: str) -> list[Source]:
    sizes = (
        ("xapi_allocation_kib", "Memory allocation done by the XAPI daemon", "KiB", 350.0, 0.9),
        ("xapi_memory_usage_kib", "Total memory allocated used by XAPI daemon", "KiB", 52000.0, 0.02),
        ("xapi_free_memory_kib", "Free memory available to the XAPI daemon", "KiB", 9000.0, 0.2),
        ("xapi_live_memory_kib", "Live memory used by XAPI daemon", "KiB", 31000.0, 0.05),
    )
    found = []
    for name, text, units, size, swing in sizes:
        curve = scaled(wave(f"{key}/{name}", swing), size)
        found.append(Source(name, text, units, curve, is_counter=name == "xapi_allocation_kib"))
    return found


def _interfaces(shape: HostShape) -> list[Source]:
    found = []
    for way, text in (("rx", "received"), ("tx", "sent")):
        curves = []
        for position, device in enumerate(shape.interfaces):
            name = f"{shape.key}/{device}/{way}"
            own = scaled(wave(name), 1500 + 3000 * share(name))
            curves.append(_host_curve(own, _RUNNING, 9e3 if position == 0 else 0.0))
            sentence = f"Bytes per second {text} on physical interface {device}"
            found.append(Source(f"pif_{device}_{way}", sentence, "B/s", curves[-1]))
        sentence = f"Bytes per second {text} on all physical interfaces"
        found.append(Source(f"pif_aggr_{way}", sentence, "B/s", total(curves)))
    return found


def _repository_io(key: str, uuid: str, *, is_written: bool) -> Iterable[Source]:
    name = f"{key}/{uuid}"
    read = (*scaled(wave(f"{name}/read"), 800 + 4000 * share(f"{name}/read")), *(0.0,) * HOST_SUMS)
    own = scaled(wave(f"{name}/write"), 200 + 900 * share(f"{name}/write"))
    write = _host_curve(own, _WRITTEN, 1.0 if is_written else 0.0)
    return _io(name, "the SR", read, write)


def sr_sources(key: str, uuid: str, utilisation: int) -> list[Source]:
    """Return a repository's own data sources: those that its host has of it, and how full it is now."""
    full = (*scaled(STEADY, float(utilisation)), *(0.0,) * HOST_SUMS)
    size = Source("physical_utilisation", "Space used on the SR", "B", full, is_counter=False)
    return [*_repository_io(key, uuid, is_written=True), size]
