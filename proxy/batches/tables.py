"""Where files and batches are kept: beside the ledger, never in its tables, since they hold
prompts and answers.

With PostgreSQL they are in the ledger's database, so that every replica has them; else in
``batches.db`` in the state folder, which all workers share. Times are Unix seconds.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)
from sqlalchemy.engine import make_url

from meters.database import Database
from proxy import books
from proxy.settings import Settings

# In these states of a batch there is something to do.
OPEN = ("validating", "in_progress", "finalizing", "cancelling")

metadata = MetaData()

files = Table(
    "batch_files",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("purpose", Text, nullable=False),
    Column("bytes", BigInteger, nullable=False),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double, nullable=False),
    Column("whole", Boolean, nullable=False),  # all its parts are there
    Index("batch_files_by_team", "team", "created_s"),
)

parts = Table(
    "batch_file_parts",
    metadata,
    Column("file_id", Text, primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("data", LargeBinary, nullable=False),
)

batches = Table(
    "batches",
    metadata,
    Column("id", Text, primary_key=True),
    Column("team", Text, nullable=False),
    Column("key_id", Text),  # whose limits its requests are under; NULL where there are no keys
    Column("endpoint", Text, nullable=False),
    Column("input_file_id", Text, nullable=False),
    Column("metadata", Text),  # JSON, as it was sent
    Column("headers", Text, nullable=False),  # JSON: what all its requests ask of Joulegate
    Column("status", Text, nullable=False),
    Column("errors", Text),  # JSON: what is wrong with its file
    Column("total", BigInteger, nullable=False, default=0),
    Column("completed", BigInteger, nullable=False, default=0),
    Column("failed", BigInteger, nullable=False, default=0),
    Column("energy_j", Double, nullable=False, default=0.0),  # estimated, of those that are known
    Column("carbon_g", Double, nullable=False, default=0.0),
    Column("known", BigInteger, nullable=False, default=0),  # answers whose energy is known
    Column("evidence", Text, nullable=False, default=""),  # what these stand on, with commas
    Column("output_file_id", Text),
    Column("error_file_id", Text),
    Column("created_s", Double, nullable=False),
    Column("expires_s", Double, nullable=False),
    Column("in_progress_s", Double),
    Column("finalizing_s", Double),
    Column("completed_s", Double),
    Column("failed_s", Double),
    Column("expired_s", Double),
    Column("cancelling_s", Double),
    Column("cancelled_s", Double),
    Column("owner", Text),  # the process that works on it
    Column("owned_until_s", Double, nullable=False, default=0.0),
    Index("batches_by_team", "team", "created_s"),
    Index("batches_by_status", "status", "owned_until_s"),
)

results = Table(
    "batch_results",
    metadata,
    Column("batch_id", Text, primary_key=True),
    Column("line", Integer, primary_key=True, autoincrement=False),
    Column("ok", Boolean, nullable=False),
    Column("data", LargeBinary, nullable=False),  # a line of the output or error file
    Column("energy_j", Double),
    Column("carbon_g", Double),
    Column("evidence", Text),
)


def database_of(settings: Settings) -> Database:
    """The database of files and batches; it is made when it is first used."""
    url = books.url_of(settings)
    if make_url(url if "://" in url else f"sqlite:///{url}").get_backend_name() == "sqlite":
        url = f"sqlite:///{Path(settings.state_dir) / 'batches.db'}"
    return Database(url, _create, connections=2)


def _create(connection: Connection) -> None:
    metadata.create_all(connection)
