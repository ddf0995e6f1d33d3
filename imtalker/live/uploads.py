"""Forms with files, written to disk while they arrive and counted while they are written."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ..errors import InputError
from .limits import Limits
from .refusal import stalled, too_large

FIELD_BYTES = 4096  # of a field that is no file
JSON_BYTES = 2**18  # of a request that is JSON
BROKEN_OFF = "the request broke off: send it again"


@dataclass
class Form:
    """files: the uploaded ones by their field's name. values: the other fields."""

    files: dict[str, Path] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)


async def receive_form(
    request: Request, folder: Path, limits: Limits, files: tuple[str, ...], values: tuple[str, ...]
) -> Form:
    """Read a multipart form; its files go into `folder`, which the caller removes, whatever happens.

    files, values: names of the fields that are expected; each file is needed. Raises InputError for another form,
    Refusal when the request is too large, as early as its size is known, or when it comes to a halt.
    """
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise InputError(f"a form (multipart/form-data) with {', '.join(files)} is expected, as curl -F makes it")
    reader = _FormReader(folder, files, values)
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async for chunk in chunks(request, limits.upload_bytes, limits.stalled_seconds):
            parser.write(chunk)
        parser.finalize()
    except FormParserError as error:
        raise InputError(f"the form is damaged ({error}): send it again") from None
    finally:
        reader.close()
    if not reader.complete:
        raise InputError(BROKEN_OFF)
    if lacking := [name for name in files if name not in reader.form.files]:
        raise InputError(f"the form has no file {', '.join(lacking)}: add it")
    return reader.form


async def chunks(request: Request, most: int, stalled_seconds: float) -> AsyncIterator[bytes]:
    """A request's body while it comes. Raises Refusal when it has more than `most` bytes, as early as that is known, or
    comes to a halt; InputError when it breaks off."""
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > most:
        raise too_large(most)
    received, stream = 0, request.stream()
    try:
        while (chunk := await asyncio.wait_for(anext(stream, None), stalled_seconds)) is not None:
            received += len(chunk)
            if received > most:
                raise too_large(most)
            yield chunk
    except ClientDisconnect:
        raise InputError(BROKEN_OFF) from None
    except asyncio.TimeoutError:
        raise stalled(stalled_seconds) from None


async def receive_json(request: Request, limits: Limits) -> dict:
    """A small JSON object. Raises InputError for anything else, Refusal when it is too large or comes to a halt."""
    body = b"".join([chunk async for chunk in chunks(request, JSON_BYTES, limits.stalled_seconds)])
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict):
        raise InputError("a JSON object is expected")
    return given


def safe_name(name: str) -> str:
    """A file's name without folders and without what a file system or a terminal might not like."""
    name = re.sub(r"[^\w. -]", "_", name.replace("\\", "/").rsplit("/", 1)[-1])
    return name.encode(errors="replace")[-80:].decode(errors="ignore").strip(". ") or "file"


class _FormReader:
    """The parser's callbacks: one part after the other into a file or a value."""

    def __init__(self, folder: Path, files: tuple[str, ...], values: tuple[str, ...]):
        self.form, self.complete = Form(), False
        self._folder, self._files, self._values = folder, files, values
        self._headers: dict[bytes, bytes] = {}
        self._field, self._value = b"", b""
        self._name, self._file, self._bytes = "", None, b""

    def callbacks(self) -> dict:
        return {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._extend("_field", data[start:end]),
            "on_header_value": lambda data, start, end: self._extend("_value", data[start:end]),
            "on_header_end": self._header,
            "on_headers_finished": self._open,
            "on_part_data": lambda data, start, end: self._write(data[start:end]),
            "on_part_end": self._end,
            "on_end": self._finish,
        }

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _extend(self, name: str, data: bytes) -> None:
        whole = getattr(self, name) + data
        if len(whole) > FIELD_BYTES:
            raise InputError(f"a header of a part of the form is longer than {FIELD_BYTES} bytes: use a shorter name")
        setattr(self, name, whole)

    def _begin(self) -> None:
        self._headers, self._bytes = {}, b""

    def _header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _open(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        self._name = options.get(b"name", b"").decode(errors="replace")
        if b"filename" not in options:
            if self._name not in self._values:
                raise InputError(f"field {self._name[:40]!r} in the form: {', '.join(self._values)} expected")
            return
        if self._name not in self._files or self._name in self.form.files:
            raise InputError(f"file {self._name[:40]!r} in the form: one each of {', '.join(self._files)} expected")
        folder = self._folder / self._name
        folder.mkdir()
        path = folder / safe_name(options[b"filename"].decode(errors="replace"))
        self._file = open(path, "xb")  # closed when the part ends, or by close()
        self.form.files[self._name] = path

    def _write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
            return
        self._bytes += data
        if len(self._bytes) > FIELD_BYTES:
            raise InputError(f"field {self._name!r} in the form is longer than {FIELD_BYTES} bytes: shorten it")

    def _end(self) -> None:
        if self._file is not None:
            self.close()
        else:
            self.form.values[self._name] = self._bytes.decode(errors="replace")

    def _finish(self) -> None:
        self.complete = True
