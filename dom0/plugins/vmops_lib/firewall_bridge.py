"""The firewall on Linux bridges: each table is exchanged at once, by the kernel's own transaction."""

import contextlib
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator

from vmops_lib import place, run
from vmops_lib.failures import Busy, Failure, Unsupported
from vmops_lib.firewall_document import State
from vmops_lib.firewall_tables import FORWARD, PREFIX, chains_of, frames_of, sets_of
from vmops_lib.xenstore import Store

_JUMP = "-m physdev --physdev-is-bridged -j " + FORWARD
_NETFILTER = "/proc/sys/net/bridge/bridge-nf-call-%s"
#: XAPI's own script for VIFs takes it around ebtables (dom0-and-guest.md 4.3).
_EBTABLES_LOCK = "/var/lock/ebtables.lock"
_PROGRAMS = {4: "iptables", 6: "ip6tables"}
_BACKENDS = "/local/domain/0/backend/vif"
#: iptables ends so when somebody else has the table.
_LOCKED = 4
_TRIES = 20
_PAUSE_S = 0.2
_TABLE_S = 50


def enforce(state: State) -> "list[str]":
    """Let the host's tables have what the state says; return bridges that are not there (yet).

    Raises Unsupported where bridged packets do not come to iptables, Busy, CommandFailed.
    """
    missing = _missing(state)
    _switch_netfilter_on()
    devices = _devices(state)
    frames = frames_of(state, devices)
    if not _are_frames_there(frames):
        _exchange_frames(frames)
    _exchange_sets(state)
    for family, program in _PROGRAMS.items():
        chains = chains_of(state, family, devices)
        if not _is_there(program, chains):
            _exchange(program, chains)
    _drop_sets(state)
    return missing


def is_live(state: State) -> bool:
    """Tell whether the tables are those that `enforce` would put there now."""
    if _missing(state) or not all(_is_on(name) for name in ("iptables", "ip6tables")):
        return False
    devices = _devices(state)
    if not all(_is_there(program, chains_of(state, family, devices)) for family, program in _PROGRAMS.items()):
        return False
    return _are_frames_there(frames_of(state, devices)) and {name for name, _ in sets_of(state)} <= set(_sets())


def _missing(state: State) -> "list[str]":
    """Return bridges that are not there. Raises Unsupported for one that is none of Linux's."""
    missing = []
    for bridge in sorted({str(vif["bridge"]) for vif in state.vifs().values()}):
        device = place.path("/sys/class/net/" + bridge)
        if not os.path.isdir(device):
            missing.append(bridge)
        elif not os.path.isdir(device + "/bridge"):
            raise Unsupported("%s is not a bridge of Linux: its packets never come to iptables." % bridge)
    return missing


def _switch_netfilter_on() -> None:
    for name in ("iptables", "ip6tables"):
        if not os.path.exists(place.path(_NETFILTER % name)):
            with contextlib.suppress(Failure):
                run.run(["modprobe", "br_netfilter"])
        try:
            with open(place.path(_NETFILTER % name), "w", encoding="ascii") as file:
                file.write("1\n")
        except OSError as error:
            text = "Bridged packets do not come to %s here: %s." % (name, error.strerror)
            raise Unsupported(text) from None


def _is_on(name: str) -> bool:
    try:
        with open(place.path(_NETFILTER % name), encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _devices(state: State) -> "dict[str, list[str]]":
    """Return the devices of VIFs that are plugged, by MAC: XenStore has them. An emulated device is a second one."""
    uuids: dict[str, list[str]] = {}
    for uuid, vif in state.vifs().items():
        uuids.setdefault(str(vif["mac"]), []).append(uuid)
    found: dict[str, list[str]] = {}
    with Store() as store:
        for domid in _names(store, _BACKENDS):
            for number in _names(store, "%s/%s" % (_BACKENDS, domid)):
                mac = store.text("%s/%s/%s/mac" % (_BACKENDS, domid, number)).lower()
                for uuid in uuids.get(mac, []):
                    found.setdefault(uuid, []).extend(["vif%s.%s" % (domid, number), "tap%s.%s" % (domid, number)])
    return found


def _names(store: Store, path: str) -> "list[str]":
    try:
        names = store.names(path)
    except Failure:
        return []
    return sorted(name for name in names if name.isdigit())


# -- iptables


def _marker(chains: "dict[str, list[str]]") -> str:
    """Return a rule that does nothing but say which rules these are."""
    text = "\n".join("%s %s" % (name, rule) for name in sorted(chains) for rule in chains[name])
    return '-m comment --comment "vmops %s"' % hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


def _is_there(program: str, chains: "dict[str, list[str]]") -> bool:
    first = run.run([program, "-S", FORWARD, "1"], ok=(0, 1)).output.decode("ascii", "replace")
    is_jumped_to = run.run([program, "-C", "FORWARD", *_JUMP.split()], ok=(0, 1, 2)).status == 0
    return is_jumped_to and _marker(chains) in first


def _exchange(program: str, chains: "dict[str, list[str]]") -> None:
    """Put our chains in the place of those that are there, in one transaction."""
    present = run.run([program + "-save", "-t", "filter"], timeout_s=_TABLE_S).output.decode("ascii", "replace")
    known = set(re.findall(r"^:(%s\S+) " % PREFIX, present, re.MULTILINE))
    lines = ["*filter"]
    lines += [":%s - [0:0]" % name for name in sorted(known | set(chains))]
    if not re.search(r"^-A FORWARD .*-j %s$" % FORWARD, present, re.MULTILINE):
        lines.append("-I FORWARD 1 " + _JUMP)
    lines.append("-A %s %s" % (FORWARD, _marker(chains)))
    lines += ["-A %s %s" % (name, rule) for name in sorted(chains) for rule in chains[name]]
    lines += ["-X " + name for name in sorted(known - set(chains))]
    text = "".join(line + "\n" for line in [*lines, "COMMIT"]).encode("ascii")
    for _ in range(_TRIES):
        if run.run([program + "-restore", "--noflush"], text, _TABLE_S, ok=(0, _LOCKED)).status == 0:
            return
        time.sleep(_PAUSE_S)
    raise Busy("Somebody else has the tables of %s." % program)


# -- ipset


def _sets() -> "list[str]":
    names = run.run(["ipset", "list", "-n"]).output.decode("ascii", "replace").split()
    return [name for name in names if name.startswith(PREFIX)]


def _exchange_sets(state: State) -> None:
    """Fill new sets beside the old ones and swap them: a packet sees the old members or the new ones."""
    lines = []
    for (name, family), members in sorted(sets_of(state).items()):
        kind = "hash:net family %s maxelem 65536" % ("inet" if family == 4 else "inet6")  # noqa: PLR2004 - IPv4
        lines += ["create %s %s -exist" % (name, kind), "create %s.new %s -exist" % (name, kind)]
        lines.append("flush %s.new" % name)
        lines += ["add %s.new %s -exist" % (name, one) for one in members]
        lines += ["swap %s %s.new" % (name, name), "destroy %s.new" % name]
    if lines:
        run.run(["ipset", "restore"], stdin="".join(line + "\n" for line in lines).encode("ascii"))


def _drop_sets(state: State) -> None:
    wanted = {name for name, _ in sets_of(state)}
    for name in _sets():
        if name not in wanted:
            run.run(["ipset", "destroy", name])


# -- ebtables


def _frame_marker(chains: "dict[str, list[str]]") -> str:
    """Return a chain's name that says which rules these are: ebtables has no comments."""
    text = "\n".join("%s %s" % (name, rule) for name in sorted(chains) for rule in chains[name])
    return "%sh-%s" % (PREFIX, hashlib.sha256(text.encode("ascii")).hexdigest()[:16])


def _are_frames_there(chains: "dict[str, list[str]]") -> bool:
    said = run.run(["ebtables", "-L", FORWARD], ok=(0, 1, 255)).output.decode("ascii", "replace")
    return _frame_marker(chains) in said


def _exchange_frames(chains: "dict[str, list[str]]") -> None:
    """Write the table of frames anew, with what others have there (XAPI's own locks of VIFs)."""
    marker = _frame_marker(chains)
    with _ebtables_lock():
        saved = run.run(["ebtables-save"], timeout_s=_TABLE_S).output.decode("ascii", "replace")
        others = [line for line in _filter_table(saved) if PREFIX not in line]
        names = [line for line in others if line.startswith(":")]
        rules = [line for line in others if line.startswith("-A")]
        lines = ["*filter", *names, *(":%s RETURN" % name for name in [*sorted(chains), marker])]
        lines += ["-A FORWARD -j " + FORWARD, "-A %s -j %s" % (FORWARD, marker)]
        lines += ["-A %s %s" % (name, rule) for name in sorted(chains) for rule in chains[name]]
        text = "".join(line + "\n" for line in [*lines, *rules]).encode("ascii")
        run.run(["ebtables-restore"], stdin=text, timeout_s=_TABLE_S)


def _filter_table(saved: str) -> "list[str]":
    """Return the lines of the table that we are in; the tables' built-in chains for one that is not there yet."""
    table = re.search(r"^\*filter\n(.*?)(?=^\*|\Z)", saved, re.MULTILINE | re.DOTALL)
    if table is None:
        return [":INPUT ACCEPT", ":FORWARD ACCEPT", ":OUTPUT ACCEPT"]
    return table.group(1).splitlines()


@contextlib.contextmanager
def _ebtables_lock() -> "Iterator[None]":
    path = place.path(_EBTABLES_LOCK)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "ab") as file:
        for _ in range(_TRIES):
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                time.sleep(_PAUSE_S)
            else:
                yield
                return
    raise Busy("Somebody else has the tables of ebtables.")
