"""A server of weight files on 127.0.0.1 that can break off."""

import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest


@dataclass
class Served:
    """The files by name, where to stop the next answers, and what was asked and sent."""

    files: dict[str, bytes]
    cut_after: list[int] = field(default_factory=list)
    requests: list[tuple[str, str | None]] = field(default_factory=list)
    url: str = ""


@pytest.fixture
def serve(monkeypatch):
    """Starts a server of a `Served`; sets its url."""
    monkeypatch.delenv("JAXVISION_OFFLINE", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr("jaxvision.data.download.BACKOFF_SECONDS", 0.0)
    running = []

    def start(files, **behaviour):
        served = Served(files, **behaviour)
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler(served))
        running.append(server)
        served.url = f"http://127.0.0.1:{server.server_address[1]}/"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
        return served

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def handler(served):
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            name, asked = self.path.partition("?")[0].rpartition("/")[2], self.headers.get("Range")
            served.requests.append((name, asked))
            body = served.files.get(name)
            if body is None:
                self.send_error(404)
                return
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(body) - start))
            self.send_header("ETag", '"v1"')
            if asked:
                self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
            self.end_headers()
            body = body[start:]
            if served.cut_after:
                body = body[: served.cut_after.pop(0)]
                self.close_connection = True
            self.wfile.write(body)

    return Handler
