"""Data for the tests of `jaxvision.data`, and a small HTTP server that can misbehave."""

import fcntl
import gzip
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxvision.data.idx import idx_bytes, idx_sha256


@pytest.fixture(scope="session")
def embedded_dir(shared_dir):
    """A data folder in which the embedded subset is prepared, and nothing else.

    Not to be changed: the workers share it. One prepares, and another that needs it waits.
    """
    from jaxvision.data import load_splits

    folder = shared_dir / "embedded"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load_splits("fashion_mnist", data="embedded", data_dir=folder, announce=lambda line: None)
    return folder


@pytest.fixture
def tiny_full(tmp_path, monkeypatch):
    """A folder with four files that count as the full set in this test: 30 and 10 pictures."""
    from jaxvision.data import recipes
    from jaxvision.data.builders import fashion_mnist, idx_files

    rng = np.random.default_rng(0)
    folder = tmp_path / "tiny"
    folder.mkdir()
    splits = {}
    for split, prefix, size in (("train", "train", 30), ("test", "t10k", 10)):
        arrays = {
            f"{prefix}-images-idx3-ubyte": rng.integers(0, 256, (size, 28, 28), dtype=np.uint8),
            f"{prefix}-labels-idx1-ubyte": rng.integers(0, 10, size, dtype=np.uint8),
        }
        for stem, array in arrays.items():
            (folder / f"{stem}.gz").write_bytes(gzip.compress(idx_bytes(array)))
        digests = [idx_sha256(array) for array in arrays.values()]
        splits[split] = idx_files.SplitFiles(size, *arrays, *digests)
    edition = idx_files.Edition("full", splits)
    monkeypatch.setitem(fashion_mnist.EDITIONS, "full", edition)
    # Nothing but what a test puts there: neither the machine's own copy nor the internet.
    monkeypatch.setattr(recipes, "FASHION_MNIST_FOLDER", Path(tmp_path / "not-installed"))
    return folder


@pytest.fixture
def write_pictures():
    """Writes noisy JPEGs of many sizes: `(folder, {"train/ants": 3, ...})`; returns their paths."""

    def write(folder, counts, *, suffix=".jpg"):
        paths = []
        for place, count in counts.items():
            (folder / place).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                rng = np.random.default_rng([len(paths), i])
                h, w = rng.integers(20, 60, 2)
                low = rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)
                picture = Image.fromarray(low).resize((int(w), int(h)), Image.Resampling.BICUBIC)
                paths.append(folder / place / f"{i}{suffix}")
                picture.save(paths[-1])
        return paths

    return write


@pytest.fixture
def serve(monkeypatch):
    """Starts an HTTP server on 127.0.0.1 that behaves as the fields of `Served` say."""
    monkeypatch.delenv("JAXVISION_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    running = []

    def start(**behaviour):
        served = Served(**behaviour)
        running.append(run_server(served))
        return served

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


@dataclass
class Served:
    """What a server does, and a record of what it was asked."""

    files: dict[str, bytes]
    etag: str | None = '"v1"'
    ranges: bool = True
    cut_after: list[int | None] = field(default_factory=list)  # bytes before the cut, by request
    statuses: list[int] = field(default_factory=list)  # the first answers, instead of the file
    stall_seconds: float = 0.0
    shift_range: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    url: str = ""


def run_server(served: Served) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            served.requests.append({"path": self.path, **{k: v for k, v in self.headers.items()}})
            body = served.files.get(self.path.lstrip("/"))
            if served.statuses:
                return self.answer(served.statuses.pop(0), b"")
            if body is None:
                return self.answer(404, b"")
            asked = self.headers.get("Range")
            same = self.headers.get("If-Range") in (None, served.etag)
            if not (asked and served.ranges and same):
                return self.answer(200, body)
            start = int(asked.removeprefix("bytes=").rstrip("-")) + served.shift_range
            if start >= len(body):
                return self.answer(416, b"", {"Content-Range": f"bytes */{len(body)}"})
            sent_range = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], {"Content-Range": sent_range})

        def answer(self, status, body, headers=None):
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            if served.etag:
                self.send_header("ETag", served.etag)
            for name, value in {**served.headers, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            cut = served.cut_after.pop(0) if served.cut_after and status < 300 else None
            body = body[:cut]
            self.wfile.write(body)
            self.wfile.flush()
            served.sent += len(body)
            if served.stall_seconds and cut is not None:
                time.sleep(served.stall_seconds)
            if cut is not None:
                self.close_connection = True

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served.url = f"http://127.0.0.1:{server.server_address[1]}/"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    return server
