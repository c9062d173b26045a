"""A real MLflow server on the loopback, and a proxy in front of it that asks for credentials."""

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

_STARTS_WITHIN_S = 120
_CHANGES = {"POST", "PUT", "PATCH", "DELETE"}
_OF_THE_PROXY = {"Authorization", "Host", "Transfer-Encoding", "Content-Length", "Connection"}
_SEARCHES = "/search"  # POST, but changes nothing


@contextmanager
def mlflow_server(folder: Path) -> Iterator[str]:
    """The URI of a server whose database and files are in `folder`. Its process group ends with the block."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'server.db'}", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    environment = {
        **os.environ,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    with (folder / "server.log").open("w") as log:
        process = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        _wait(port, process, folder / "server.log")
        yield f"http://127.0.0.1:{port}"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=30)


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return int(unused.getsockname()[1])


def _wait(port: int, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + _STARTS_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(f"the MLflow server did not start: {log.read_text()[-2000:]}")


@dataclass
class Proxy:
    """Passes on requests with one of these Authorization headers; only those that read if `read_only`."""

    uri: str
    allowed: set[str]
    read_only: bool = False
    seen: set[str] = field(default_factory=set)


@contextmanager
def proxy(server: str, allowed: set[str]) -> Iterator[Proxy]:
    """A proxy on the loopback in front of an MLflow server."""
    target = server.removeprefix("http://")

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            try:
                self.raw_requestline = self.rfile.readline(65537)
                if not self.raw_requestline or not self.parse_request():
                    self.close_connection = True
                    return
                self._pass()
            except ConnectionError:
                self.close_connection = True

        def log_message(self, *arguments: object) -> None:
            pass

        def _pass(self) -> None:
            body = self._body()
            who = self.headers.get("Authorization", "")
            guarded.seen.add(who)
            changes = self.command in _CHANGES and _SEARCHES not in self.path
            if who not in guarded.allowed:
                self._answer(401, b"You are not authenticated.", "text/plain")
            elif guarded.read_only and changes:
                text = b'{"error_code": "PERMISSION_DENIED", "message": "Permission denied"}'
                self._answer(403, text, "application/json")
            else:
                connection = http.client.HTTPConnection(target, timeout=60)
                headers = {key: value for key, value in self.headers.items() if key not in _OF_THE_PROXY}
                connection.request(self.command, self.path, body, headers)
                answer = connection.getresponse()
                self._answer(answer.status, answer.read(), answer.headers.get("Content-Type", ""))
                connection.close()

        def _body(self) -> bytes:
            """Files arrive in chunks: https://www.rfc-editor.org/rfc/rfc9112#section-7.1."""
            if self.headers.get("Transfer-Encoding", "") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)

        def _answer(self, status: int, body: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    guarded = Proxy(f"http://127.0.0.1:{listener.server_port}", allowed)
    thread = Thread(target=listener.serve_forever, daemon=True)
    thread.start()
    try:
        yield guarded
    finally:
        listener.shutdown()
        listener.server_close()
        thread.join(timeout=10)
