"""One deployment, with a pool of two hosts, for all tests here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.integration.information.support import Office
from tests.support.dom0 import install


@pytest.fixture(scope="package")
def package_office(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Office]:
    """The deployment itself; tests take `office`."""
    plugins = install(tmp_path_factory.mktemp("pack"))
    options = (*Office.simulator_options, "--plugins", str(plugins))
    with Office(tmp_path_factory.mktemp("office"), simulator_options=options) as made:
        made.client.list_instances()  # logs in
        yield made


@pytest.fixture
def office(package_office: Office) -> Iterator[Office]:
    """The deployment with an empty pool; what a test changes is put right after it."""
    package_office.simulator.reset_stats()
    yield package_office
    package_office.tidy()
