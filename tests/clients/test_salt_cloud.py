"""Salt Cloud's driver for XenServer, unmodified: a VM's life from its command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from simulator.testing import SimulatedPool
from tests.clients.conftest import HERE, install, install_python, run

PROVIDER = "lab:\n  driver: xen\n  url: {url}\n  user: {user}\n  password: {password}\n"
PROFILE = "web:\n  provider: lab\n  image: golden\n  clone: True\n  deploy: False\n  size: any\n"


class SaltCloud:
    """The command `salt-cloud` with a configuration of its own."""

    def __init__(self, program: Path, folder: Path, pool: SimulatedPool) -> None:
        self._program = program
        self._folder = folder
        login = {"url": pool.url, "user": pool.user, "password": pool.password}
        for name, text in (
            ("cloud", f"conf_file: {folder}/cloud\n"),
            ("master", f"root_dir: {folder}/root\n"),
            ("cloud.providers.d/lab.conf", PROVIDER.format(**login)),
            ("cloud.profiles.d/web.conf", PROFILE),
        ):
            path = folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")

    def __call__(self, *arguments: str) -> dict[str, Any]:
        """Run the command; return its answer."""
        common = ("--config-dir", str(self._folder), "--log-file", str(self._folder / "log"), "--out", "json", "-y")
        answer: dict[str, Any] = json.loads(run(self._program, *common, *arguments))
        return answer


@pytest.fixture(scope="session")
def program() -> Path:
    requirements = HERE / "requirements-salt.txt"
    return install("salt", [requirements], lambda folder: install_python(folder, requirements)) / "bin" / "salt-cloud"


def test_a_vm_is_made_rebooted_stopped_started_and_destroyed(program: Path, tmp_path: Path) -> None:
    with SimulatedPool("--vms", "1", "--guest-writes", "0", "--boot-time", "50ms") as pool:
        pool.add_vm(name="golden", disks=[{"size": 8 << 20}])
        salt_cloud = SaltCloud(program, tmp_path, pool)
        nodes = salt_cloud("--query")["lab"]["xen"]
        assert nodes["demo-01"]["state"] == "Running"
        assert nodes["golden"]["state"] == "Halted"
        made = salt_cloud("--profile", "web", "salty")["salty"]
        assert made["state"] == "Running"
        assert made["private_ips"] is not None
        for action, state in (("reboot", "Running"), ("shutdown", "Halted"), ("start", "Running")):
            assert salt_cloud("--action", action, "salty")["lab"]["xen"]["salty"]["state"] == state
        salt_cloud("--destroy", "salty")
        assert "salty" not in salt_cloud("--query")["lab"]["xen"]
        for function in ("host_list", "sr_list"):
            assert salt_cloud("--function", function, "lab")["lab"]["xen"]
        assert pool.leaks() == {}
