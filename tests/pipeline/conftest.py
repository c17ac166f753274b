"""Studies of tests on SQLite do not wait for the disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy


@pytest.fixture(scope="session", autouse=True)
def quick_databases() -> Iterator[None]:
    """What a killed process has written is with the system already: only a power cut would lose it."""

    def hurry(connection: Any, record: Any) -> None:
        if isinstance(connection, sqlite3.Connection):
            connection.execute("PRAGMA synchronous=OFF")

    sqlalchemy.event.listen(sqlalchemy.engine.Engine, "connect", hurry)
    yield
    sqlalchemy.event.remove(sqlalchemy.engine.Engine, "connect", hurry)
