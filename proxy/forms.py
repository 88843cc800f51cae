"""The one field of an uploaded form that routing needs: which model it is for.

Files (sound to be transcribed, images to be edited) are passed on as they came; only where a
backend knows the model by another name are those bytes replaced, and no other.
"""

from __future__ import annotations

from typing import NamedTuple

from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header

from proxy.errors import invalid_body

LONGEST_FIELD = 1024  # bytes of a value that is looked at


class Form(NamedTuple):
    """What a form says, and where in the body its model stands."""

    model: str | None
    stream: bool
    start: int
    end: int

    def renamed(self, body: bytes, model: str) -> bytes:
        """The body with another model's name in it."""
        whole = memoryview(body)
        return b"".join((whole[: self.start], model.encode(), whole[self.end :]))


def is_form(content_type: bytes) -> bool:
    """Whether a body of that type is a form with files."""
    return content_type.partition(b";")[0].strip().lower() == b"multipart/form-data"


def form_of(body: bytes, content_type: bytes) -> Form:
    """The model and whether a stream is wanted. Raises ApiError 400 for what is no form."""
    _, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if not boundary:
        raise invalid_body("The form's content-type has no boundary.", code="invalid_form")
    found: dict[bytes, tuple[int, int]] = {}
    header, name = b"", b""

    def begin() -> None:
        nonlocal name
        name = b""

    def header_field(data: bytes, start: int, end: int) -> None:
        nonlocal header
        header = data[start:end].lower()

    def header_value(data: bytes, start: int, end: int) -> None:
        nonlocal name
        if header == b"content-disposition":
            name = parse_options_header(data[start:end])[1].get(b"name", b"")

    def part_data(data: bytes, start: int, end: int) -> None:
        # The whole body is given at once, so that positions are the body's own.
        if name in (b"model", b"stream") and end - start <= LONGEST_FIELD:
            found.setdefault(name, (start, end))

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_header_field": header_field,
            "on_header_value": header_value,
            "on_part_data": part_data,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except MultipartParseError as error:
        raise invalid_body(f"We could not read the form: {error}.", code="invalid_form") from None
    start, end = found.get(b"model", (0, 0))
    try:
        model = body[start:end].decode() or None
    except UnicodeDecodeError:
        raise invalid_body("The form's model is not UTF-8.", code="invalid_form") from None
    asked = found.get(b"stream", (0, 0))
    return Form(model, body[slice(*asked)].strip().lower() == b"true", start, end)
