"""Thousands of rows at once, with one statement for all of them.

The drain shares its process with serving, so what counts is the time that Python spends on a row.
A list of keys therefore goes to the database as one value, not as a parameter each, and rows go as
the driver takes them best: SQLite's one after the other through one prepared statement,
PostgreSQL's as one COPY, and what is added to its sums as one JSON document.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import chain
from operator import itemgetter
from typing import Any

import msgspec
import psycopg
from psycopg import sql
from sqlalchemy import ARRAY, Connection, Table, any_, bindparam, func, select
from sqlalchemy.exc import DBAPIError

Row = dict[str, Any]

# SQLite steps through a statement without Python's lock, and takes it again for the next one: each
# time a busy event loop is in between. Fewer statements are therefore kinder to serving.
_TOGETHER = 100

_encode = msgspec.json.Encoder().encode


def rows_where(
    connection: Connection, query: Any, key: Any, wanted: Collection[str | int]
) -> list[Row]:
    """The rows of ``query`` whose column ``key`` is any of ``wanted``."""
    if not wanted:
        return []
    keys: Any
    if connection.dialect.name == "postgresql":
        condition = key == any_(bindparam("wanted", type_=ARRAY(key.type)))
        keys = list(wanted)
    else:
        listed = func.json_each(bindparam("wanted")).table_valued("value", name="wanted_keys")
        condition = key.in_(select(listed.c.value))
        keys = _encode(list(wanted)).decode()
    found = connection.execute(query.where(condition), {"wanted": keys})
    names = list(found.keys())
    return [dict(zip(names, row, strict=True)) for row in found]


def insert(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Insert rows that all have the same keys and are not there yet."""
    if not rows:
        return
    names = tuple(rows[0])
    values = map(itemgetter(*names), rows) if len(names) > 1 else ((r[names[0]],) for r in rows)
    if connection.dialect.name == "postgresql":
        with _raw(connection) as cursor, cursor.copy(_copy(table.name, names)) as copy:
            for row in values:
                copy.write_row(row)
    else:
        many = list(values)
        whole = len(many) // _TOGETHER * _TOGETHER
        for start in range(0, whole, _TOGETHER):
            flat = tuple(chain.from_iterable(many[start : start + _TOGETHER]))
            connection.exec_driver_sql(_insertion(table.name, names, _TOGETHER), flat)
        if whole < len(many):
            connection.exec_driver_sql(_insertion(table.name, names, 1), many[whole:])


def add(connection: Connection, table: Table, rows: Sequence[Row]) -> None:
    """Add to the columns that are not the table's key, making the rows that are missing.

    Every row has all columns of the table; all but its key are whole numbers.
    """
    if not rows:
        return
    statement = _addition(table, connection.dialect.name)
    if connection.dialect.name == "postgresql":
        with _raw(connection) as cursor:
            cursor.execute(statement.encode(), (_encode(rows).decode(),), prepare=True)
    else:
        names = [c.name for c in table.c]
        connection.exec_driver_sql(statement, list(map(itemgetter(*names), rows)))


@lru_cache
def _insertion(table: str, names: tuple[str, ...], rows: int) -> str:
    marks = ", ".join("?" * len(names))
    values = ", ".join([f"({marks})"] * rows)
    return f"INSERT INTO {table} ({', '.join(names)}) VALUES {values}"


@lru_cache
def _addition(table: Table, dialect: str) -> str:
    names = [c.name for c in table.c]
    keys = [c.name for c in table.primary_key]
    listed, marks = ", ".join(names), ", ".join("?" * len(names))
    source = f"VALUES ({marks})"
    if dialect == "postgresql":
        source = f"SELECT {listed} FROM json_populate_recordset(NULL::{table.name}, %s::json)"
    added = ", ".join(f"{n} = {table.name}.{n} + excluded.{n}" for n in names if n not in keys)
    return (
        f"INSERT INTO {table.name} ({listed}) {source} "
        f"ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {added}"
    )


@lru_cache
def _copy(table: str, names: tuple[str, ...]) -> sql.Composed:
    listed = sql.SQL(", ").join(map(sql.Identifier, names))
    return sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), listed)


@contextmanager
def _raw(connection: Connection) -> Iterator[psycopg.Cursor[Any]]:
    """psycopg's own cursor in the transaction; its errors are raised as SQLAlchemy's."""
    driver: Any = connection.connection.driver_connection
    try:
        with driver.cursor() as cursor:
            yield cursor
    except psycopg.Error as error:
        raise DBAPIError.instance("rows of a batch", None, error, psycopg.Error) from error
