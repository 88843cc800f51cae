"""A file as it is uploaded: a form, read as it comes and kept in parts, never whole in memory."""

from __future__ import annotations

import asyncio
from typing import Any

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy import errors
from proxy.asgi import Receive
from proxy.batches.files import PART_BYTES, Files
from proxy.errors import ApiError
from proxy.forms import LONGEST_FIELD, is_form
from proxy.reading import Gone


class Upload:
    """Collects a form's fields and its one file."""

    def __init__(self, content_type: bytes) -> None:
        """Raises ApiError 400 for what is no form."""
        boundary = parse_options_header(content_type)[1].get(b"boundary")
        if not is_form(content_type) or not boundary:
            raise errors.invalid_body(
                "Send the file as multipart/form-data, with its boundary.", code="invalid_form"
            )
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.part = bytearray()  # of the file, since it was last taken
        self.size = 0
        self._name, self._is_file = "", False
        self._field, self._header = bytearray(), bytearray()  # as far as they have come
        self._value = bytearray()
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_field,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_part_data": self._data,
                "on_part_end": self._end,
            },
        )

    def feed(self, data: bytes) -> None:
        """Raises ApiError 400 for what is no form."""
        try:
            self._parser.write(data)
        except MultipartParseError as error:
            raise _unreadable(error) from None

    def finish(self) -> None:
        """Raises ApiError 400 for a form that breaks off."""
        try:
            self._parser.finalize()
        except MultipartParseError as error:
            raise _unreadable(error) from None

    def _begin(self) -> None:
        self._name, self._is_file = "", False
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            options = parse_options_header(bytes(self._header))[1]
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            if self._name == "file" and self.filename is None:
                self._is_file = True
                self.filename = options.get(b"filename", b"").decode("utf-8", "replace")[:255]
        self._field.clear()
        self._header.clear()

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self.part += data[start:end]
            self.size += end - start
        elif len(self._value) <= LONGEST_FIELD:
            self._value += data[start:end]

    def _end(self) -> None:
        if self._name and not self._is_file and len(self.fields) < 16:
            self.fields[self._name] = self._value[:LONGEST_FIELD].decode("utf-8", "replace")


def _unreadable(error: Exception) -> ApiError:
    return errors.invalid_body(f"We could not read the form: {error}.", code="invalid_form")


async def keep(
    upload: Upload, receive: Receive, files: Files, file_id: str, most_bytes: int
) -> None:
    """Read all of a form and keep its file under that id. Raises ApiError 400, 413; Gone."""
    number, more, message = 0, True, dict[str, Any]()
    while more:
        message = dict(await receive())
        if message["type"] == "http.disconnect":
            raise Gone
        upload.feed(message.get("body", b""))
        more = message.get("more_body", False)
        if upload.size > most_bytes:
            raise ApiError(
                413,
                "request_too_large",
                f"The file is larger than {most_bytes} bytes (batches.max_file_bytes, or what is "
                "left of batches.max_team_bytes).",
                final=True,
            )
        if len(upload.part) >= PART_BYTES or (not more and upload.part):
            part = bytes(upload.part)
            upload.part.clear()
            await asyncio.to_thread(files.add, file_id, number, part)
            number += 1
    upload.finish()
