"""The package: built where rpmbuild is, with the layout of the installer."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from worker.cli import dom0

FOLDER = dom0.FOLDER


@pytest.mark.skipif(shutil.which("rpmbuild") is None, reason="this machine has no rpmbuild")
def test_the_package_can_be_built_and_has_every_plugin(tmp_path: Path) -> None:
    defines = [f"_topdir {tmp_path}", f"_sourcedir {FOLDER}", f"vmops_version {dom0.pack_version()}"]
    options = [word for one in defines for word in ("--define", one)]
    subprocess.run(["rpmbuild", "-bb", *options, str(FOLDER / "vmops-dom0.spec")], check=True, capture_output=True)
    (package,) = (tmp_path / "RPMS").rglob("*.rpm")
    listed = subprocess.run(["rpm", "-qlp", str(package)], check=True, capture_output=True, text=True).stdout
    for script in FOLDER.glob("plugins/vmops-*"):
        assert f"/etc/xapi.d/plugins/{script.name}\n" in listed
    for module in FOLDER.glob("plugins/vmops_lib/*.py"):
        assert f"/opt/vmops/dom0/rpm-{dom0.pack_version()}/vmops_lib/{module.name}\n" in listed


def test_package_and_installer_agree_where_things_are() -> None:
    spec = (FOLDER / "vmops-dom0.spec").read_text(encoding="ascii")
    installer = (FOLDER / "installer.py").read_text(encoding="ascii")
    for text in ("/opt/vmops/dom0", "/etc/xapi.d/plugins", "/etc/cron.d/vmops", "console.tend()"):
        assert text in spec
        assert text in installer
    assert f"vmops_version {dom0.pack_version()}" in spec
