"""HTTP on the loopback: the endpoints that the client needs, a sign-in, and `/-/…` for tests and people."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

from tests.earthengine_server.catalogue import Catalogue
from tests.earthengine_server.faults import Fault, FaultPlan, plan_of
from tests.earthengine_server.functions import document
from tests.earthengine_server.service import PIXELS, VALUE, Answer, Service, check_project, refused
from tests.earthengine_server.sign_in import token_for
from tests.earthengine_server.values import ServiceError

_PROJECT = re.compile(r"/v1/projects/(?P<project>[^/:]+)/(?P<rest>.+)")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else every answer of two writes waits for an acknowledgement
    server: Server

    def date_time_string(self, timestamp: float | None = None) -> str:
        return super().date_time_string(self.server.service.now() if timestamp is None else timestamp)

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        service = self.server.service
        match path:
            case "/$discovery/rest":
                self._send(_json(discovery(self.server.url)))
            case "/-/counters":
                self._send(_json(service.counters()))
            case "/-/requests":
                self._send(_json(service.entries()))
            case _:
                self._send(self._guarded(path, b""))

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        service = self.server.service
        match path:
            case "/-/faults":
                self._send(self._planned(body))
            case "/-/forget":
                service.forget()
                self._send(_json({}))
            case "/token":
                status, content = token_for(body, service.now())
                self._send(Answer(status, json.dumps(content).encode()))
            case _:
                self._send(self._guarded(path, body))

    def _planned(self, body: bytes) -> Answer:
        """Take over a plan of faults, `{"faults": […], "seed": 0}`."""
        try:
            self.server.service.plan = plan_of(**json.loads(body))
        except (ValueError, TypeError) as error:
            return refused(ServiceError(f"This is no plan of faults: {error}"))
        return _json({})

    def _guarded(self, path: str, body: bytes) -> Answer:
        """An endpoint of a project."""
        asked = _PROJECT.fullmatch(path)
        try:
            if asked is None:
                raise ServiceError(f"{path} is not served here.", 404, "NOT_FOUND")
            check_project(asked["project"])
            if (self.command, asked["rest"]) == ("GET", "algorithms"):
                return Answer(200, _algorithms())
            if self.command == "POST" and asked["rest"] in (PIXELS, VALUE):
                return self.server.service.compute(asked["rest"], body)
            raise ServiceError(f"{self.command} {path} is not served here.", 404, "NOT_FOUND")
        except ServiceError as error:
            return refused(error)

    def _send(self, answer: Answer) -> None:
        if answer.drop:
            self._hang_up()
            return
        try:
            self.send_response(answer.status)
            self.send_header("Content-Type", answer.content_type)
            self.send_header("Content-Length", str(len(answer.content)))
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            if answer.truncate:
                self.wfile.write(answer.content[: len(answer.content) // 2])
                self._hang_up()
            else:
                self.wfile.write(answer.content)
        except (BrokenPipeError, ConnectionResetError):  # the client's deadline has passed
            self.close_connection = True

    def _hang_up(self) -> None:
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)
        self.close_connection = True

    def log_message(self, *_: Any) -> None:
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # a delayed answer need not be waited for
    request_queue_size = 256

    def __init__(self, service: Service, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.service = service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed has hung up: no error of the server's. All others are printed."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


@dataclass(frozen=True)
class Serving:
    """A running server as a test sees it."""

    url: str
    service: Service

    def counters(self) -> dict[str, Any]:
        return self.service.counters()

    def plan(self, *faults: Fault, seed: int = 0) -> None:
        self.service.plan = FaultPlan(faults, seed)

    def forget(self) -> None:
        self.service.forget()


@contextmanager
def serve(catalogue: Catalogue | None = None, **options: Any) -> Iterator[Serving]:
    """A server in threads of this process, on a port of its own; `options` are those of `Service`."""
    service = Service(catalogue, **options)
    with Server(service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield Serving(server.url, service)
        finally:
            server.shutdown()
            thread.join()


def discovery(url: str) -> dict[str, Any]:
    """The client's own copy of the discovery document, told where it is served.

    It calls itself v1alpha and lacks two parameters that newer clients look for.
    """
    told = json.loads(json.dumps(document("cloud_api_discovery_document.json")))
    told |= {"id": "earthengine:v1", "version": "v1", "rootUrl": f"{url}/", "baseUrl": f"{url}/"}
    told.pop("mtlsRootUrl", None)
    told = json.loads(json.dumps(told).replace("v1alpha", "v1"))
    for parameters in _found(told, "listAssets"):
        for name in ("filter", "view"):
            parameters.setdefault(name, {"type": "string", "location": "query"})
    return told


def _found(node: Any, method: str) -> Iterator[dict[str, Any]]:
    """The parameters of each method of a name."""
    if isinstance(node, dict):
        if method in node and "parameters" in node[method]:
            yield node[method]["parameters"]
        for child in node.values():
            yield from _found(child, method)


@cache
def _algorithms() -> bytes:
    return json.dumps(document("algorithms.json")).encode()


def _json(content: Any) -> Answer:
    return Answer(200, json.dumps(content).encode())
