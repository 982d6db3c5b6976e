"""Every transcript of a real XAPI 23.14, sent to the simulator in its order: each answer is compared as a whole.

Heads byte for byte (lengths aside), the encoding byte for byte, the values one by one; references, uuids and times may
be others, but must name the same objects throughout. What differs all the same is in `DIFFERENCES`, with its reason; a
line there that excuses nothing any more fails, too. Needs the reference folder (VMOPS_REFERENCE).
"""

from __future__ import annotations

import concurrent.futures
import os
import re
import shutil
import tempfile
import textwrap
import xmlrpc.client
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.model_transcripts import NULL, Exchange, Replay, exchanges, leaves
from tests.support.simulator import Client, SimulatorProcess

pytestmark = pytest.mark.timeout(180)

_PLUGIN = """\
    import sys, time
    import XenAPIPlugin

    def echo(session, args):
        return "echo:%s" % sorted(args.items())

    def fail(session, args):
        raise Exception("boom")

    def failure(session, args):
        raise XenAPIPlugin.Failure("MY_CODE", ["a", "b"])

    def nonstr(session, args):
        return {"a": 1}

    def slow(session, args):
        time.sleep(float(args["s"]))
        return "slept"

    if __name__ == "__main__":
        XenAPIPlugin.dispatch({"echo": echo, "fail": fail, "failure": failure, "nonstr": nonstr, "slow": slow})
"""
_CRASH = """\
    import sys
    print("hello")
    sys.exit(3)
"""


@dataclass
class Stage:
    """What the recording's own script did between the transcripts."""

    replay: Replay
    xen: Client
    vm: str = ""
    pending: list[str] = field(default_factory=list)

    def recorded(self, exchange: Exchange, position: int) -> str:
        """Return a parameter of a recorded request."""
        params, _ = xmlrpc.client.loads(exchange.request[1].strip())
        return str(params[position])

    def guest(self, **habits: Any) -> None:
        """Change how the guest of the recorded VM behaves."""
        self.replay.simulator.control("POST", f"guests/{self.xen('VM.get_uuid', self.vm)}", habits)


Hook = Callable[[Stage, list[Exchange]], None]


def _other_session(stage: Stage, recorded: list[Exchange]) -> None:
    password = stage.replay.simulator.password
    stage.replay.ours[stage.recorded(recorded[0], 0)] = stage.xen.raw("session.login_with_password", "root", password)


def _snapshot(stage: Stage, recorded: list[Exchange]) -> None:
    vm_ref = stage.xen.find_vm("demo-01")
    stage.replay.ours[stage.recorded(recorded[0], 1)] = stage.xen("VM.snapshot", vm_ref, "of the demo")


def _repository(stage: Stage, recorded: list[Exchange]) -> None:
    stage.replay.ours[stage.recorded(recorded[0], 1)] = stage.xen("pool.get_default_SR", _pool(stage))


def _pool(stage: Stage) -> str:
    return str(stage.xen("pool.get_all")[0])


def _silent_guest(stage: Stage, recorded: list[Exchange]) -> None:
    stage.vm = stage.replay.ours[stage.recorded(recorded[0], 1)]
    for vbd_ref in stage.xen("VM.get_VBDs", stage.vm):
        if stage.xen("VBD.get_userdevice", vbd_ref) == "99999":
            stage.xen("VBD.destroy", vbd_ref)
    stage.guest(agent=False, pv_drivers=False)


def _agent(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.guest(agent=True, pv_drivers=True)
    stage.xen("VM.add_to_xenstore_data", stage.vm, "vm-data/sim/pv", "1")


def _devices(stage: Stage, recorded: list[Exchange]) -> None:
    """Tell the VBDs apart by their position: a set has no order."""
    ours = {stage.xen("VBD.get_userdevice", ref): ref for ref in stage.xen("VM.get_VBDs", stage.vm)}
    for exchange in recorded[1:]:
        position = leaves(exchange.response[1])["Value.userdevice"].text
        stage.replay.ours[stage.recorded(exchange, 1)] = ours[position]


def _slow_boot(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.guest(boot_s=600.0)


def _no_suspend_sr(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.guest(agent=True, pv_drivers=True, boot_s=0.0)
    stage.xen("pool.set_suspend_image_SR", _pool(stage), NULL)


def _suspend_sr(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.xen("pool.set_suspend_image_SR", _pool(stage), stage.xen("pool.get_default_SR", _pool(stage)))


def _running(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.xen("VM.start", stage.vm, False, False)
    stage.guest(agent=True, pv_drivers=True)


def _unblocked_and_too_big(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.xen("VM.remove_from_blocked_operations", stage.vm, "start")
    stage.xen("VM.set_memory_limits", stage.vm, str(128 << 20), *[str(1 << 50)] * 3)


def _small_but_disabled(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.xen("VM.set_memory_limits", stage.vm, str(128 << 20), *[str(256 << 20)] * 3)
    stage.xen("host.disable", stage.xen("host.get_all")[0])


def _enabled(stage: Stage, _recorded: list[Exchange]) -> None:
    stage.xen("host.enable", stage.xen("host.get_all")[0])


def _slow_snapshot_of_a_running_vm(stage: Stage, recorded: list[Exchange]) -> None:
    if stage.xen("VM.get_power_state", stage.vm) == "Halted":
        _running(stage, recorded)
    _slow_snapshot(stage, recorded)


def _slow_snapshot_seen(stage: Stage, recorded: list[Exchange]) -> None:
    ours = {stage.xen("VBD.get_userdevice", ref): ref for ref in stage.xen("VM.get_VBDs", stage.vm)}
    stage.replay.ours[stage.recorded(recorded[2], 1)] = ours["0"]
    stage.replay.ours[leaves(recorded[2].response[1])["Value"].text] = stage.xen("VBD.get_VDI", ours["0"])
    _slow_snapshot(stage, recorded)


def _slow_snapshot(stage: Stage, _recorded: list[Exchange]) -> None:
    """A snapshot is under way: the repository takes its time."""
    stage.replay.simulator.control("POST", "storage", {"snapshot_s": 1.5})
    task = stage.xen("Async.VM.snapshot", stage.vm, "under way")
    while not any(stage.xen("VDI.get_current_operations", vdi) for vdi in stage.xen("VDI.get_all")):
        assert stage.xen("task.get_status", task) == "pending"
    stage.pending.append(task)


def _fresh_token(stage: Stage, recorded: list[Exchange]) -> None:
    token = stage.recorded(recorded[-1], 2)
    stage.replay.ours[token] = stage.xen("event.from", ["VM"], "", 0.0)["token"]


BEFORE: dict[str, Hook] = {
    "009": _other_session,
    "028": _snapshot,
    "045": _repository,
    "074": _silent_guest,
    "089": _agent,
    "097": _slow_boot,
    "100": _no_suspend_sr,
    "101": _suspend_sr,
    "116": _devices,
    "117": _running,
    "138": _unblocked_and_too_big,
    "140": _small_but_disabled,
    "142": _enabled,
    "168": _fresh_token,
    "180": _slow_snapshot_of_a_running_vm,
    "181": _slow_snapshot_seen,
}

#: (transcript, path, reason): what may differ. Paths are regular expressions for whole paths.
DIFFERENCES: list[tuple[str, str, str]] = [
    # Another release: the simulator is a XAPI 24.10, the recording of 23.14.
    (".*", r".*\.pending_guidances_(recommended|full)\[\]\+", "fields of later releases"),
    ("046-.*", r"Value\.(latest_synced_updates_applied|numa_affinity_policy|last_update_hash)\+", "later releases"),
    ("046-.*", r"Value\.(API_version_minor|software_version\.\w+)", "names the release"),
    ("047-.*", r"Value\.<0>\.(custom_uefi_certificates|\w+_auth_max_threads|\w*update_sync\w*)\+", "later releases"),
    # Another machine.
    ("045-.*", r"Value\.(name_\w+|type|physical_\w+|virtual_allocation)", "another repository"),
    ("045-.*", r"Value\.VDIs\[.*", "other disks in it"),
    ("046-.*", r"Value\.(name_label|hostname|address)", "another host"),
    ("046-.*", r"Value\.other_config\.(agent_start_time|boot_time)", "times"),
    ("046-.*", r"Value\.(PIFs|PBDs)\[.*", "the recording's host had no PIF and a second repository"),
    ("046-.*", r"Value\.control_domain", "the snapshot of 028 was of what is the control domain there"),
    ("046-.*", r"Value\.cpu_info\.threads_per_core\+", "the recording's processor did not tell"),
    ("046-.*", r"Value\.https_only", "set there; here plain HTTP is served when TLS is not asked for"),
    ("047-.*", r"Value\.<0>\.default_SR", "none was set"),
    ("047-.*", r"Value\.<0>\.telemetry_uuid", "a secret that the simulator does not make"),
    ("139-.*", r"ErrorDescription\[[12]\]", "another size of memory; the overhead of so large a VM's shadow"),
    ("168-.*|169-.*|17[0-4]-.*", r"Value\.valid_ref_counts\.\w+", "other numbers of objects, of the same classes"),
    ("169-.*|17[0-4]-.*", r"Value\.events\[0\]\.id", "another number of writes before"),
    ("177-.*", r"Value\[0\]\.timestamp", "a time"),
    ("169-.*|17[047]-.*", r".*\.domid", "another number of domains before"),
    # Random.
    ("060-.*|110-.*", r"Value\.MAC", "made of the VM's random mac_seed"),
    # The recording's hypervisor was a stand-in that shows less than Xen.
    (".*", r".*\.consoles\[(\]|0\]\+)", "it had no consoles"),
    (".*", r".*\.last_booted_record", "the private state of its domain manager"),
    ("090-.*", r"Value\.networks\.0/ip(v4/0)?", "another address"),
    ("090-.*", r"Value\.other\.platform-feature-.*\+", "this hypervisor's features, which its stand-in did not write"),
    ("091-.*", r"Value\.memory_actual", "it reported none"),
    ("107-.*|115-.*", r"Value\.(memory_target|last_boot_CPU_flags\.features)", "it forgot both when it resumed"),
    # Texts for people or for XAPI itself.
    (".*", r"Value\.snapshot_metadata", "the fields above, as one text"),
    ("152-.*", r"Value\.other_config\.debug_info:cancel_points_seen-", "an aid of XAPI's own tests"),
    ("111-.*", r"Value\.physical_utilisation", "XAPI shows the size of before until the next scan"),
]


def _folder() -> Path | None:
    folder = Path(os.environ.get("VMOPS_REFERENCE", "/nowhere")) / "observed" / "wire"
    return folder if folder.is_dir() else None


_FOLDER = _folder()
NAMES = sorted(path.stem for path in _FOLDER.glob("*.txt")) if _FOLDER else []


def _run(stage: Stage, name: str, recorded: list[Exchange]) -> list[tuple[str, str]]:
    hook = BEFORE.get(name[:3])
    if hook is not None:
        hook(stage, recorded)
    replay = stage.replay
    if name.startswith("179"):
        return _run_together(replay, recorded)
    found = []
    for exchange in recorded:
        found += replay.compare(exchange, replay.until_done(exchange))
    for task in stage.pending:
        stage.xen.wait(task)
    stage.pending.clear()
    stage.replay.simulator.control("POST", "storage", {"snapshot_s": 0})
    return found


def _run_together(replay: Replay, recorded: list[Exchange]) -> list[tuple[str, str]]:
    """Log in thrice, then send the snapshots at once: their answers come in any order."""
    logins = [one for one in recorded if "login" in one.request[1]]
    others = [one for one in recorded if "login" not in one.request[1]]
    found = []
    for exchange in logins:
        found += replay.compare(exchange, replay.send(*exchange.request))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        answers = list(pool.map(lambda one: replay.send(*one.request), others))
    for exchange, answer in zip(others, answers, strict=True):
        found += replay.compare(exchange, answer)
    return found


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, list[tuple[str, str]]]]:
    """Play everything once; return the differences by transcript."""
    if _FOLDER is None:
        pytest.skip("VMOPS_REFERENCE does not name the reference folder")
    folder = Path(tempfile.mkdtemp(prefix="simulator-plugins-"))
    for name, text in (("simtest", _PLUGIN), ("simcrash", _CRASH)):
        (folder / name).write_text("#!/usr/bin/env python3\n" + textwrap.dedent(text), encoding="utf-8")
        (folder / name).chmod(0o755)
    options = ("--vms", "1", "--guest-writes", "0", "--boot-time", "0", "--plugins", str(folder))
    try:
        with SimulatorProcess(*options) as simulator, simulator.session() as xen:
            stage = Stage(Replay(simulator), xen)
            yield {name: _run(stage, name, exchanges(_FOLDER / f"{name}.txt")) for name in NAMES}
    finally:
        shutil.rmtree(folder)


def _reasons(name: str, path: str) -> list[tuple[str, str, str]]:
    return [one for one in DIFFERENCES if re.fullmatch(one[0], name) and re.fullmatch(one[1], path)]


@pytest.mark.parametrize("name", NAMES or ["none"])
def test_the_answers_of_a_transcript_are_xapis(found: dict[str, list[tuple[str, str]]], name: str) -> None:
    unexplained = [f"{path}: {text}" for path, text in found[name] if not _reasons(name, path)]
    assert not unexplained, "\n".join(unexplained)


def test_every_difference_that_has_a_reason_is_there(found: dict[str, list[tuple[str, str]]]) -> None:
    used = {reason for name, ones in found.items() for path, _ in ones for reason in _reasons(name, path)}
    assert [one for one in DIFFERENCES if one not in used] == []
