"""``/v1/files`` and ``/v1/batches``, as OpenAI's clients know them."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import StreamingResponse

from meters.unreadable import UNREADABLE
from proxy import errors
from proxy.auth import Caller, KeyRing
from proxy.batches import upload
from proxy.batches.files import Files, Row
from proxy.batches.lines import PATHS
from proxy.batches.sending import TAG
from proxy.batches.store import Batches
from proxy.errors import ApiError
from proxy.failed_keys import address_of
from proxy.reading import Gone
from proxy.routes import answer
from proxy.settings import BatchSettings
from proxy.wishes import wishes_in

WINDOW_S = 86_400.0  # the one completion window there is
PURPOSE = "batch"
# What a batch's requests may ask of Joulegate together, said when it is made.
ASKS = (
    "x-joulegate-policy",
    "x-joulegate-min-quality",
    "x-joulegate-max-energy-j",
    "x-joulegate-max-ttft-ms",
    "x-joulegate-quality",
    "x-joulegate-task",
    "x-joulegate-tags",
    "x-joulegate-usage",
    "cache-control",
)
_SHORTEST_S, _LONGEST_S = 3600, 2_592_000  # of expires_after


class NewBatch(msgspec.Struct):
    """What a batch is made from."""

    input_file_id: str
    endpoint: str
    completion_window: str
    metadata: dict[str, str] | None = None


class BatchRoutes:
    """The routes; ``router`` has them all."""

    def __init__(
        self,
        *,
        keys: KeyRing,
        files: Files,
        batches: Batches,
        settings: Callable[[], BatchSettings],
        made: Callable[[], None],
        cancelled: Callable[[str], None],
    ) -> None:
        self.keys = keys
        self.files = files
        self.batches = batches
        self.settings = settings
        self.made = made
        self.cancelled = cancelled
        self.router = APIRouter()
        add = self.router.add_api_route
        add("/v1/files", self.upload, methods=["POST"])
        add("/v1/files", self.list_files, methods=["GET"])
        add("/v1/files/{file_id}", self.file, methods=["GET"])
        add("/v1/files/{file_id}", self.delete_file, methods=["DELETE"])
        add("/v1/files/{file_id}/content", self.content, methods=["GET"])
        add("/v1/batches", self.create, methods=["POST"])
        add("/v1/batches", self.list_batches, methods=["GET"])
        add("/v1/batches/{batch_id}", self.batch, methods=["GET"])
        add("/v1/batches/{batch_id}/cancel", self.cancel, methods=["POST"])

    def caller(self, request: Request) -> Caller:
        """Who is calling. Raises ApiError 401."""
        return self.keys.caller(request.scope["headers"], time.time(), address_of(request.scope))

    def _settings(self) -> BatchSettings:
        """Where files are taken. Raises ApiError 403."""
        settings = self.settings()
        if not settings.enabled:
            raise errors.forbidden("This Joulegate takes no files (batches.enabled is false).")
        return settings

    # -- files -----------------------------------------------------------------------------------

    async def upload(self, request: Request) -> Response:
        """A new file."""
        caller = self.caller(request)
        settings = self._settings()
        if request.headers.get("content-encoding", "identity").lower() != "identity":
            raise ApiError(
                415, "unsupported_encoding", "Files are taken without a content-encoding."
            )
        form = upload.Upload(request.headers.get("content-type", "").encode("latin-1"))
        now_s = time.time()
        left = settings.max_team_bytes - await self._asked(self.files.used_bytes, caller.team)
        most = min(settings.max_file_bytes, max(left, 0))
        file_id = await self._asked(
            self.files.begin, caller.team, "", PURPOSE, now_s + settings.keep_days * 86_400, now_s
        )
        whole = False
        try:
            await upload.keep(form, request.receive, self.files, file_id, most)
            expires_s = _expires_s(form.fields, now_s)
            _require_purpose(form.fields.get("purpose"))
            if form.filename is None:
                raise errors.invalid_body(
                    "The form has no 'file'.", code="missing_required_parameter", param="file"
                )
            await self._asked(self.files.end, file_id, form.size, form.filename, expires_s)
            whole = True
        except Gone:
            return Response(status_code=400)  # nobody is there to read it
        except SQLAlchemyError:
            raise _away() from None
        finally:
            if not whole:
                await asyncio.shield(asyncio.to_thread(self.files.abandon, file_id))
        return answer(_file(await self._file(caller, file_id)))

    async def list_files(self, request: Request) -> Response:
        """A team's files."""
        caller = self.caller(request)
        asked = request.query_params
        limit = _limit(asked.get("limit"), 10_000, 10_000)
        oldest_first = asked.get("order", "desc") == "asc"
        rows = await self._asked(
            lambda: self.files.list(
                caller.team,
                limit=limit + 1,
                after=asked.get("after"),
                purpose=asked.get("purpose"),
                oldest_first=oldest_first,
            )
        )
        return answer(_listed([_file(row) for row in rows], limit))

    async def file(self, request: Request, file_id: str) -> Response:
        """What is known of a file."""
        return answer(_file(await self._file(self.caller(request), file_id)))

    async def delete_file(self, request: Request, file_id: str) -> Response:
        """A file, gone."""
        caller = self.caller(request)
        await self._file(caller, file_id)
        user = await self._asked(self.batches.using, file_id)
        if user is not None:
            raise ApiError(
                409, "file_in_use", f"{user} still reads this file: cancel it first.", final=True
            )
        await self._asked(self.files.delete, caller.team, file_id)
        return answer({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request, file_id: str) -> Response:
        """A file's bytes."""
        row = await self._file(self.caller(request), file_id)
        parts = self.files.content(file_id)

        async def streamed() -> AsyncIterator[bytes]:
            while (part := await asyncio.to_thread(next, parts, None)) is not None:
                yield part

        headers = {"content-length": str(row["bytes"])}
        return StreamingResponse(streamed(), media_type="application/octet-stream", headers=headers)

    async def _file(self, caller: Caller, file_id: str) -> Row:
        row: Row | None = await self._asked(self.files.get, caller.team, file_id)
        if row is None:
            raise errors.not_found(f"There is no file {file_id!r} of your team.")
        return row

    # -- batches ---------------------------------------------------------------------------------

    async def create(self, request: Request) -> Response:
        """A new batch."""
        caller = self.caller(request)
        self._settings()
        body = await request.body()
        try:
            given = msgspec.json.decode(body, type=NewBatch)
        except UNREADABLE as error:
            raise errors.invalid_body(f"We could not read the batch: {error}.") from None
        if given.endpoint not in PATHS:
            known = ", ".join(PATHS)
            raise _invalid("endpoint", f"{given.endpoint!r} takes no batches; known: {known}.")
        if given.completion_window != "24h":
            raise _invalid("completion_window", "The completion window should be '24h'.")
        metadata = given.metadata or {}
        if len(metadata) > 16 or any(len(k) > 64 or len(v) > 512 for k, v in metadata.items()):
            raise _invalid("metadata", "At most 16 pairs, of 64 and 512 characters.")
        if await self._asked(self.files.get, caller.team, given.input_file_id) is None:
            raise _invalid("input_file_id", f"There is no file {given.input_file_id!r}.")
        asked = {name: request.headers[name] for name in ASKS if name in request.headers}
        wishes_in({name.encode(): value.encode("latin-1") for name, value in asked.items()})
        now_s = time.time()
        row: Row = {
            "id": f"batch_{secrets.token_hex(12)}",
            "team": caller.team,
            "key_id": caller.key_id,
            "endpoint": given.endpoint,
            "input_file_id": given.input_file_id,
            "metadata": None if given.metadata is None else json.dumps(given.metadata),
            "headers": json.dumps(asked),
            "status": "validating",
            "created_s": now_s,
            "expires_s": now_s + WINDOW_S,
        }
        await self._asked(self.batches.create, row)
        self.made()
        return answer(_batch(await self._batch(caller, row["id"])))

    async def list_batches(self, request: Request) -> Response:
        """A team's batches."""
        caller = self.caller(request)
        limit = _limit(request.query_params.get("limit"), 20, 100)
        after = request.query_params.get("after")
        rows = await self._asked(
            lambda: self.batches.list(caller.team, limit=limit + 1, after=after)
        )
        return answer(_listed([_batch(row) for row in rows], limit))

    async def batch(self, request: Request, batch_id: str) -> Response:
        """A batch, as far as it is."""
        return answer(_batch(await self._batch(self.caller(request), batch_id)))

    async def cancel(self, request: Request, batch_id: str) -> Response:
        """An end to a batch: what was answered is kept, the rest is not sent."""
        caller = self.caller(request)
        row = await self._batch(caller, batch_id)
        if not await self._asked(self.batches.cancel, caller.team, batch_id):
            row = await self._batch(caller, batch_id)
            if row["status"] not in ("cancelling", "cancelled"):
                raise ApiError(
                    409, "batch_ended", f"The batch is {row['status']} already.", final=True
                )
        self.cancelled(batch_id)
        return answer(_batch(await self._batch(caller, batch_id)))

    async def _batch(self, caller: Caller, batch_id: str) -> Row:
        row: Row | None = await self._asked(self.batches.get, caller.team, batch_id)
        if row is None:
            raise errors.not_found(f"There is no batch {batch_id!r} of your team.")
        return row

    async def _asked(self, call: Callable[..., Any], *given: Any) -> Any:
        """What the database says, asked in a thread. Raises ApiError 503 while it is away."""
        try:
            return await asyncio.to_thread(call, *given)
        except (SQLAlchemyError, OSError):
            raise _away() from None


def _away() -> ApiError:
    return errors.overloaded("The database of files and batches does not answer. Try again.", 5.0)


def _invalid(param: str, message: str) -> ApiError:
    return errors.invalid_body(message, code="invalid_value", param=param)


def _limit(given: str | None, usual: int, most: int) -> int:
    if given is None:
        return usual
    if not given.isascii() or not given.isdigit() or not 1 <= int(given[:9]) <= most:
        raise _invalid("limit", f"'limit' should be between 1 and {most}.")
    return int(given)


def _require_purpose(purpose: str | None) -> None:
    if purpose != PURPOSE:
        raise _invalid("purpose", "Joulegate keeps files for batches: purpose should be 'batch'.")


def _expires_s(fields: dict[str, str], now_s: float) -> float | None:
    """When a file is to be forgotten, where its form says so."""
    given = fields.get("expires_after[seconds]")
    if given is None:
        return None
    if (
        not given.isascii()
        or not given.isdigit()
        or not _SHORTEST_S <= int(given[:9]) <= _LONGEST_S
    ):
        raise _invalid("expires_after", f"Between {_SHORTEST_S} and {_LONGEST_S} seconds.")
    return now_s + int(given)


def _listed(found: list[dict[str, Any]], limit: int) -> dict[str, Any]:
    shown = found[:limit]
    return {
        "object": "list",
        "data": shown,
        "first_id": shown[0]["id"] if shown else None,
        "last_id": shown[-1]["id"] if shown else None,
        "has_more": len(found) > limit,
    }


def _file(row: Row) -> dict[str, Any]:
    return {
        "id": row["id"],
        "object": "file",
        "bytes": row["bytes"],
        "created_at": int(row["created_s"]),
        "expires_at": int(row["expires_s"]),
        "filename": row["filename"],
        "purpose": row["purpose"],
        "status": "processed",
        "status_details": None,
    }


def _batch(row: Row) -> dict[str, Any]:
    """A batch as OpenAI shows it; ``joulegate`` is what its answers so far are estimated at."""

    def at(name: str) -> int | None:
        return None if row[name] is None else int(row[name])

    return {
        "id": row["id"],
        "object": "batch",
        "endpoint": row["endpoint"],
        "errors": None if row["errors"] is None else json.loads(row["errors"]),
        "input_file_id": row["input_file_id"],
        "completion_window": "24h",
        "status": row["status"],
        "output_file_id": row["output_file_id"],
        "error_file_id": row["error_file_id"],
        "created_at": at("created_s"),
        "in_progress_at": at("in_progress_s"),
        "expires_at": at("expires_s"),
        "finalizing_at": at("finalizing_s"),
        "completed_at": at("completed_s"),
        "failed_at": at("failed_s"),
        "expired_at": at("expired_s"),
        "cancelling_at": at("cancelling_s"),
        "cancelled_at": at("cancelled_s"),
        "request_counts": {
            "total": row["total"],
            "completed": row["completed"],
            "failed": row["failed"],
        },
        "metadata": None if row["metadata"] is None else json.loads(row["metadata"]),
        "joulegate": {
            "energy_j": row["energy_j"] if row["known"] else None,
            "carbon_g": row["carbon_g"] if row["known"] else None,
            "evidence": row["evidence"].split(",") if row["evidence"] else [],
            "answers_without_energy": row["completed"] - row["known"],
            "tag": TAG.decode(),
        },
    }
