"""A real S3 on loopback (moto's server), and before it a proxy that can fail as object storage does."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from cropray import storage

Fault = Callable[[str, str], HTTPStatus | float]
"""By method and path: seconds to wait before a request is passed on, or what is answered instead."""

ERROR = "<Error><Code>{}</Code><Message>as the test wants it</Message></Error>"


@dataclass
class Bucket:
    """`url` is that of the proxy; `fault` may be changed while the server runs."""

    uri: str
    url: str
    fault: Fault = lambda _method, _path: 0.0
    seen: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, status


@contextmanager
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    """A bucket `runs` whose every request passes the proxy; the environment names it to clients."""
    import boto3
    from moto.server import ThreadedMotoServer

    monkeypatch.setattr(storage, "_UPLOAD_WAITS_S", (0.1, 0.1))
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    behind = server.get_host_and_port()
    bucket = Bucket("s3://runs/one", "")
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _handler(bucket, behind))
    proxy.daemon_threads = True
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    bucket.url = f"http://127.0.0.1:{proxy.server_port}"
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": bucket.url,
    }.items():
        monkeypatch.setenv(name, value)
    backend = http.client.HTTPConnection(*behind)
    backend.request("POST", "/moto-api/reset")  # servers of one process share what they hold
    assert backend.getresponse().status == HTTPStatus.OK
    backend.close()
    boto3.client("s3", endpoint_url=f"http://{behind[0]}:{behind[1]}").create_bucket(Bucket="runs")
    try:
        yield bucket
    finally:
        proxy.shutdown()
        proxy.server_close()
        thread.join()
        server.stop()


def _handler(bucket: Bucket, behind: tuple[str, int]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self._body()
            wait = bucket.fault(self.command, self.path)
            if isinstance(wait, HTTPStatus):
                self._answer(
                    wait,
                    {"Content-Type": "application/xml"},
                    ERROR.format(wait.phrase.replace(" ", "")).encode(),
                )
                return
            time.sleep(wait)
            connection = http.client.HTTPConnection(*behind, timeout=30)
            headers = {k: v for k, v in self.headers.items() if k.lower() != "transfer-encoding"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            kept = {
                k: v for k, v in answer.getheaders() if k.lower() not in ("connection", "transfer-encoding")
            }
            self._answer(answer.status, kept, answer.read())
            connection.close()

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length", 0)))
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            bucket.seen.append((self.command, self.path, status))
            self.send_response_only(status)
            for name, value in headers.items():
                if name.lower() != "content-length" or self.command == "HEAD":
                    self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_args: object) -> None:
            """Nothing: a test says what it saw."""

    for method in ("GET", "PUT", "POST", "HEAD", "DELETE"):
        setattr(Handler, f"do_{method}", Handler._pass_on)
    return Handler
