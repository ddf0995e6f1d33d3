"""A model hub on loopback with the published files, which can cut connections and damage bytes."""
from __future__ import annotations

import hashlib
import re
import threading
from contextlib import contextmanager
from functools import lru_cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0" * 40
PIECE = 1 << 20


@lru_cache
def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


class Hub:
    """`cut`: names of files whose next download stops half-way. `damaged`: names of files with one wrong byte.
    `ranges`: what clients asked for when they resumed, by name."""

    def __init__(self, folder: Path, repository: str):
        self.folder, self.prefix = folder, f"/{repository}/resolve/main/"
        self.cut, self.damaged, self.ranges, self.url = set(), set(), {}, ""


@contextmanager
def serve(folder: Path, repository: str):
    """A running `Hub` of the files in `folder`, at `hub.url`."""
    hub = Hub(folder, repository)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args):
            pass

        def do_HEAD(self):
            self.answer(body=False)

        def do_GET(self):
            self.answer(body=True)

        def answer(self, body: bool):
            name = self.path.removeprefix(hub.prefix)
            file = hub.folder / name
            if name == self.path or not file.is_file():
                self.send_response(404)
                self.send_header("X-Error-Code", "EntryNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            size, start = file.stat().st_size, 0
            if asked := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
                start = int(asked[1])
                hub.ranges.setdefault(name, []).append(start)
            self.send_response(206 if start else 200)
            if start:
                self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{sha256(file)}"')
            self.send_header("Accept-Ranges", "bytes")
            self.send_header("Content-Length", str(size - start))
            self.end_headers()
            if not body:
                return
            stop = size
            if name in hub.cut:
                hub.cut.remove(name)
                stop = (start + size) // 2
            with file.open("rb") as stream:
                stream.seek(start)
                while start < stop and (piece := stream.read(min(PIECE, stop - start))):
                    if name in hub.damaged and start <= size // 3 < start + len(piece):
                        piece = bytearray(piece)
                        piece[size // 3 - start] ^= 0x10
                    self.wfile.write(piece)
                    start += len(piece)
            self.close_connection = stop < size

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
