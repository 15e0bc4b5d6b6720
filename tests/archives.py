"""Image folders as archives, tables and pages of a server, for tests of data at scale."""

from __future__ import annotations

import functools
import http.server
import io
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def names_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def write_tars(folder: Path, output: Path, shards: int = 3, *, turn: bool = False, **options: Any) -> str:
    """Tar files of a folder's files, in order or dealt in turn; returns their address."""
    output.mkdir(parents=True, exist_ok=True)
    names = names_below(folder)
    for number in range(shards):
        size = -(-len(names) // shards)
        own = names[number::shards] if turn else names[number * size : (number + 1) * size]
        with tarfile.open(output / f"shards-{number:04d}.tar", "w", **options) as tar:
            for name in own:
                tar.add(folder / name, name)
    return f"wds://{output}/shards-{{0000..{shards - 1:04d}}}.tar"


def write_members(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def write_zip(folder: Path, path: Path, method: int = zipfile.ZIP_DEFLATED) -> str:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in reversed(names_below(folder)):
            archive.write(folder / name, name)
    return f"zip://{path}"


def write_list(folder: Path, path: Path) -> str:
    path.write_text(
        "# images\n\n" + "".join(f"{os.path.relpath(folder, path.parent)}/{n}\n" for n in names_below(folder))
    )
    return f"list://{path}"


def write_parquet(folder: Path, path: Path, rows: int = 3) -> str:
    import pyarrow
    import pyarrow.parquet

    names = names_below(folder)
    images = [{"bytes": (folder / name).read_bytes(), "path": name} for name in names]
    labels = [name.split("/")[0] for name in names]
    pyarrow.parquet.write_table(pyarrow.table({"image": images, "label": labels}), path, row_group_size=rows)
    return f"parquet://{path}"


class RangeHandler(http.server.SimpleHTTPRequestHandler):
    """Answer requests for a range of bytes, count requests, and fail as told."""

    requests: list[str] = []
    failures: dict[str, int] = {}
    refused: dict[str, int] = {}
    ranges = True

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if self.failures.get(self.path, 0) > 0:
            self.failures[self.path] -= 1
            self.send_error(503)
            return
        wanted = self.headers.get("Range")
        path = Path(self.translate_path(self.path))
        if self.path in self.refused:
            self.send_error(self.refused[self.path])
        elif wanted is None or not self.ranges or not path.is_file():
            super().do_GET()
        else:
            start, _, stop = wanted.removeprefix("bytes=").partition("-")
            content = path.read_bytes()
            part = content[int(start) : int(stop) + 1 if stop else None]
            self.send_response(206)
            self.send_header("Content-Length", str(len(part)))
            self.send_header("Content-Range", f"bytes {start}-{int(start) + len(part) - 1}/{len(content)}")
            self.end_headers()
            self.wfile.write(part)

    def do_HEAD(self) -> None:
        if self.path in self.refused:
            self.send_error(self.refused[self.path])
        else:
            super().do_HEAD()

    def log_message(self, *_: Any) -> None: ...


@contextmanager
def serving(folder: Path) -> Iterator[tuple[str, type[RangeHandler]]]:
    """Serve a folder by HTTP; yields its address and the handler."""

    class Handler(RangeHandler):
        requests: list[str] = []
        failures: dict[str, int] = {}
        refused: dict[str, int] = {}

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", Handler
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
