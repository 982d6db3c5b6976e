"""Installs the plugins on a host, or removes them: `vmops dom0 install HOST` runs this there, over SSH.

    /usr/bin/python3 -c "$(cat installer.py)" install < pack.tar

The tar's files go into a folder of their own below /opt/vmops/dom0, and links in XAPI's folder of plugins are turned to
it, each in one move: a call that begins meanwhile finds the old plugin or the new one, with the library that belongs to
it. Nothing else in that folder is touched. Doing it again changes nothing. Needs Python 3.6 and nothing else.
"""

import compileall
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import xmlrpc.client

HOME = "/opt/vmops/dom0"
PLUGINS = "/etc/xapi.d/plugins"
#: XAPI calls it for every VIF, and knows only one: somebody else's is left alone.
HOOK = "/etc/xapi.d/vif-hotplug"
CRON_FILE = "/etc/cron.d/vmops"
#: Keeps the logs of consoles small; does nothing while there are none (vmops_lib/console.py).
CRON = "* * * * * root cd %s/current && exec /usr/bin/python3 -c 'from vmops_lib import console; console.tend()'\n"
_OLDEST = (3, 6)
_SCRIPT = "vmops-"
_SETTLE_S = 30


class Refused(Exception):
    """The host cannot take the plugins; the text says why."""


def path(absolute: str) -> str:
    """Return where a file of dom0 lies; `VMOPS_DOM0_ROOT` stands for `/` in tests."""
    root = os.environ.get("VMOPS_DOM0_ROOT", "")
    return os.path.join(root, absolute.lstrip("/")) if root else absolute


def install(pack: bytes) -> "dict[str, object]":
    """Install the tar's plugins; return which version it is and whether anything changed. Raises Refused."""
    check_host()
    os.makedirs(path(HOME), mode=0o755, exist_ok=True)
    name = hashlib.sha256(pack).hexdigest()[:16]
    folder = os.path.join(path(HOME), name)
    is_new = not os.path.isdir(folder)
    if is_new:
        unpack(pack, folder)
    found = try_out(folder)
    changed = [turn(os.path.join(path(HOME), "current"), name)]
    scripts = [entry for entry in sorted(os.listdir(folder)) if entry.startswith(_SCRIPT)]
    changed += [turn(os.path.join(path(PLUGINS), script), os.path.join(folder, script)) for script in scripts]
    changed += [remove_link(entry) for entry in our_links() if entry not in scripts]
    changed.append(write(path(CRON_FILE), CRON % HOME))
    if is_ours(HOOK) or not os.path.lexists(path(HOOK)):
        changed.append(turn(path(HOOK), os.path.join(path(HOME), "current", "vif-hotplug")))
    remove_old(name)
    return {"pack": found["pack"], "python": found["python"], "changed": any(changed)}


def remove() -> "dict[str, object]":
    """Remove the plugins; what they made stays: console logs, kernel files, state in /var/lib/vmops."""
    changed = [remove_link(entry) for entry in our_links()]
    if is_ours(HOOK):
        os.unlink(path(HOOK))
    if os.path.exists(path(CRON_FILE)):
        os.unlink(path(CRON_FILE))
        changed.append(True)
    if os.path.isdir(path(HOME)):
        shutil.rmtree(path(HOME))
        changed.append(True)
    return {"changed": any(changed)}


def check_host() -> None:
    """Raise Refused where the plugins could not run."""
    if sys.version_info < _OLDEST:
        raise Refused("this host's /usr/bin/python3 is %s; the plugins need 3.6 or later" % sys.version.split()[0])
    if not os.path.isdir(path(PLUGINS)):
        raise Refused("there is no %s: this is not the dom0 of a XenServer or XCP-ng host" % PLUGINS)


def unpack(pack: bytes, folder: str) -> None:
    """Unpack the tar, beside its place first. Raises Refused for a tar with anything but plain files."""
    new = tempfile.mkdtemp(dir=path(HOME), prefix=".new-")
    try:
        with tarfile.open(fileobj=io.BytesIO(pack)) as tar:
            for member in tar.getmembers():
                parts = member.name.split("/")
                content = tar.extractfile(member) if member.isreg() else None
                if content is None or ".." in parts or member.name.startswith("/"):
                    raise Refused("the pack has something else than files: %s" % ascii(member.name))
                target = os.path.join(new, *parts)
                os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
                with open(target, "wb") as file:
                    file.write(content.read())
                os.chmod(target, 0o755 if member.mode & 0o100 else 0o644)
        compileall.compile_dir(new, quiet=1)
        os.chmod(new, 0o755)  # noqa: S103 - programs that root runs, and anybody may read
        os.rename(new, folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def try_out(folder: str) -> "dict[str, str]":
    """Call a plugin as XAPI does and return what it says of itself. Raises Refused."""
    call = xmlrpc.client.dumps(("OpaqueRef:none", {}), "version")
    program = os.path.join(folder, _SCRIPT + "info")
    bare = {key: os.environ[key] for key in ("PATH", "VMOPS_DOM0_ROOT") if key in os.environ}
    try:
        output = subprocess.check_output([program, call], env=bare, stdin=subprocess.DEVNULL, timeout=_SETTLE_S)
        answer = xmlrpc.client.loads(output)[0][0]
        said = json.loads(answer["Value"])
    except (OSError, ValueError, LookupError, TypeError, subprocess.SubprocessError) as error:
        raise Refused("the plugins do not run here: %s" % error) from None
    return {"pack": str(said["pack"]), "python": str(said["python"])}


def turn(link: str, target: str) -> bool:
    """Let a link, or whatever is there under its name, be a link to `target`; tell whether it was not."""
    if os.path.islink(link) and os.readlink(link) == target:
        return False
    new = beside(link)
    if os.path.lexists(new):
        os.unlink(new)
    os.symlink(target, new)
    os.rename(new, link)
    return True


def our_links() -> "list[str]":
    """Return the names of the links in XAPI's folder that lead into our own."""
    folder = path(PLUGINS)
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    links = [name for name in names if os.path.islink(os.path.join(folder, name))]
    return [name for name in links if os.readlink(os.path.join(folder, name)).startswith(path(HOME) + "/")]


def is_ours(file: str) -> bool:
    """Tell whether a file of dom0 is a link that leads into our folder."""
    return os.path.islink(path(file)) and os.readlink(path(file)).startswith(path(HOME) + "/")


def remove_link(name: str) -> bool:
    """Remove one of our links; tell that something changed."""
    os.unlink(os.path.join(path(PLUGINS), name))
    return True


def write(file_path: str, text: str) -> bool:
    """Let a file have this text, in one move; tell whether it had not."""
    try:
        with open(file_path, encoding="ascii") as file:
            if file.read() == text:
                return False
    except (OSError, ValueError):
        pass
    os.makedirs(os.path.dirname(file_path), mode=0o755, exist_ok=True)
    new = beside(file_path)
    with open(new, "w", encoding="ascii") as file:
        file.write(text)
    os.chmod(new, 0o644)
    os.rename(new, file_path)
    return True


def beside(target: str) -> str:
    """Return a name on the same disk as `target`, outside its folder: whatever is in there may be called, or run."""
    folder, name = os.path.split(target)
    return os.path.join(os.path.dirname(folder), ".%s.new" % name)


def remove_old(name: str) -> None:
    """Remove the folders of other versions but the newest of them: a call may still be running from it."""
    kept = (name, "current")
    others = [entry for entry in os.listdir(path(HOME)) if entry not in kept and not entry.startswith("rpm-")]
    others.sort(key=lambda entry: os.lstat(os.path.join(path(HOME), entry)).st_mtime)
    for entry in others[:-1]:
        shutil.rmtree(os.path.join(path(HOME), entry))


def main() -> None:
    """Do what the last argument says and print the result as JSON; exit 1, with the reason, when it is refused."""
    try:
        result = remove() if sys.argv[-1] == "remove" else install(sys.stdin.buffer.read())
    except Refused as refused:
        sys.exit("vmops: %s." % refused)
    except OSError as error:
        sys.exit("vmops: %s." % error)
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
