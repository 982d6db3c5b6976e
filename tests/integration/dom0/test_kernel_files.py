"""Kernel files: on every host, whole and right, wherever the sending was broken off."""

from __future__ import annotations

import io
import os

import pytest

from tests.integration.dom0.conftest import Pool
from worker.errors import Cancelled, PluginFailed
from worker.xenapi import kernel_files
from worker.xenapi.kernel_files import KernelFile

CONTENT = os.urandom(kernel_files.PART_BYTES + 17)


def no_check() -> None:
    pass


def test_a_file_comes_to_every_host_once_and_goes(pool: Pool) -> None:
    file = io.BytesIO(CONTENT)
    wanted = kernel_files.describe("image-1", file)
    before = pool.calls["host.call_plugin"]
    path = kernel_files.put(pool.session, pool.host_refs, wanted, file, no_check)
    assert pool.calls["host.call_plugin"] == before + 2 * 3  # a question and two parts for each
    for host_ref in pool.host_refs:
        assert (pool.root(host_ref) / path.lstrip("/")).read_bytes() == CONTENT
    assert kernel_files.verify(pool.session, pool.host_refs[0], wanted)
    assert kernel_files.on_host(pool.session, pool.host_refs[1]) == [wanted]
    assert kernel_files.put(pool.session, pool.host_refs, wanted, file, no_check) == path
    assert pool.calls["host.call_plugin"] == before + 2 * 3 + 2 + 2
    assert kernel_files.remove(pool.session, pool.host_refs, wanted) == 2
    assert kernel_files.remove(pool.session, pool.host_refs, wanted) == 0
    assert not kernel_files.verify(pool.session, pool.host_refs[0], wanted)


def test_what_was_begun_is_gone_on_with(pool: Pool) -> None:
    file = io.BytesIO(CONTENT)
    wanted = kernel_files.describe("image-2", file)
    parts = iter(range(1))

    def stop_at_the_second() -> None:
        if next(parts, None) is None:
            raise Cancelled("somebody asked")

    host_refs = pool.host_refs[:1]
    with pytest.raises(Cancelled):
        kernel_files.put(pool.session, host_refs, wanted, file, stop_at_the_second)
    before = pool.calls["host.call_plugin"]
    kernel_files.put(pool.session, host_refs, wanted, file, no_check)
    assert pool.calls["host.call_plugin"] == before + 2
    assert kernel_files.remove(pool.session, host_refs, wanted) == 1


def test_content_that_is_not_the_files_is_refused(pool: Pool) -> None:
    wanted = KernelFile("image-3", "0" * 64, 10)
    with pytest.raises(PluginFailed, match="does not have the SHA-256"):
        kernel_files.put(pool.session, pool.host_refs[:1], wanted, io.BytesIO(b"0123456789"), no_check)
    assert kernel_files.on_host(pool.session, pool.host_refs[0]) == []
