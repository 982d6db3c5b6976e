"""The real Glance of the opt-in tier: one for all its tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.real_glance import VENV_VARIABLE, RealGlance, find_venv, running


@pytest.fixture(scope="session")
def real_glance(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealGlance]:
    """A Glance that allows everything to everybody. Do not kill it."""
    venv = find_venv()
    if venv is None:
        pytest.skip(f"{VENV_VARIABLE} names no virtual environment with Glance and gunicorn: make test-glance")
    with running(venv, tmp_path_factory.mktemp("glance")) as glance:
        yield glance
