"""Fixtures that more than one folder uses."""

from __future__ import annotations

import gc
import itertools
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from threadpoolctl import threadpool_limits

from tests.servers import Server, new_database, start_postgres, start_redis

# Others live beside what they start.
pytest_plugins = [
    "tests.joulegate_server",
    "tests.llama_cpp",
    "tests.vllm_engine",
]

_numbers = itertools.count()

settings.register_profile("no deadline", deadline=None)  # a machine may stall
settings.load_profile("no deadline")
threadpool_limits(1)  # as when serving: servers under test share the cores with this process


def pytest_collection_finish() -> None:
    """A collection of all tests' objects takes 0.4 s: too long for a test of 0.1 s."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_level() -> Iterator[None]:
    """What a config told this process to log is over with its test."""
    logger = logging.getLogger("joulegate")
    before = logger.level
    yield
    logger.setLevel(before)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    server = start_redis()
    yield server
    server.close()


@pytest.fixture(scope="session")
def redis_url(redis_server: Server) -> str:
    """A real Redis, shared by the whole session: use keys of your own, never FLUSHALL."""
    return redis_server.url


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A real PostgreSQL, shared by the whole session: make a database with ``new_database``."""
    server = start_postgres()
    yield server.url
    server.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def ledger_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty ledger's URL: the test runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'ledger.db'}"
    url: str = request.getfixturevalue("postgres_url")
    return new_database(url, f"ledger_{next(_numbers)}")


@pytest.fixture
def new_ledger_url(ledger_url: str, tmp_path: Path) -> Callable[[], str]:
    """More empty ledgers, of the same kind as ``ledger_url``."""

    def make() -> str:
        number = next(_numbers)
        if ledger_url.startswith("sqlite"):
            return f"sqlite:///{tmp_path / f'ledger-{number}.db'}"
        return new_database(ledger_url, f"ledger_{number}")

    return make
