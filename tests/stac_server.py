"""A small real STAC API on the loopback: landing page, collections, item search with pages, files."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

_PAGE = 2  # items a page, so that clients must follow links
_CONFORMS_TO = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/collections",
)

_ERROR = "<Error><Code>{}</Code><Message>{}</Message></Error>"  # as an S3 service words it

Answer = int | dict[str, Any] | str | None
"""A status, a JSON object, where to be redirected, or None for what the server does without being told."""


@contextmanager
def serve(
    items: list[dict[str, Any]],
    *,
    conforms_to: tuple[str, ...] = _CONFORMS_TO,
    folder: Path | None = None,
    answer: Callable[[BaseHTTPRequestHandler], Answer] = lambda _: None,
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the URL and the list of searches made so far.

    `items` may be filled later. Files below `folder` are served by their relative paths, also in ranges.
    `answer` is asked first about every GET and HEAD.
    """
    searches: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            collection = path.removeprefix("/collections/")
            file = folder / path[1:] if folder else None
            told = answer(self)
            if isinstance(told, int):
                self._answer(_ERROR.format("AccessDenied", "Access Denied").encode(), told)
            elif isinstance(told, str):
                self.send_response(302)
                self.send_header("Location", told)
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif told is not None:
                self._answer(told)
            elif path == "/":
                self._answer(_landing(url) | {"conformsTo": conforms_to})
            elif collection in {item["collection"] for item in items}:
                self._answer(_collection(url, collection))
            elif file is not None and file.is_file():
                self._answer(file.read_bytes())
            else:
                self._answer(_ERROR.format("NoSuchKey", "The specified key does not exist.").encode(), 404)

        def do_POST(self) -> None:
            query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            searches.append(query)
            found = [item for item in items if _matches(item, query)]
            start = int(query.get("token", 0))
            links = []
            if start + _PAGE < len(found):
                body = {**query, "token": str(start + _PAGE)}
                links = [{"rel": "next", "href": f"{url}/search", "method": "POST", "body": body}]
            page = {"type": "FeatureCollection", "features": found[start : start + _PAGE], "links": links}
            self._answer(page)

        def _answer(self, body: dict[str, Any] | bytes, status: int = 200) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if wanted and status == 200:
                first, last = int(wanted[1]), min(int(wanted[2] or len(data)), len(data) - 1)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
                data = data[first : last + 1]
            else:
                self.send_response(status)
            self.send_header("Content-Type", "application/json" if isinstance(body, dict) else "image/tiff")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield url, searches
        finally:
            server.shutdown()
            thread.join()


def _matches(item: dict[str, Any], query: dict[str, Any]) -> bool:
    if item["collection"] not in query["collections"]:
        return False
    properties = item["properties"]
    if "datetime" in query:
        start, end = query["datetime"].split("/")
        if not start <= (properties.get("datetime") or properties["start_datetime"]) <= end:
            return False
    if "bbox" in query:
        west, south, east, north = query["bbox"]
        x0, y0, x1, y1 = item["bbox"]
        return bool(x0 <= east and x1 >= west and y0 <= north and y1 >= south)
    return True


def _landing(url: str) -> dict[str, Any]:
    return {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "id": "loopback",
        "description": "a test's catalogue",
        "links": [
            {"rel": "self", "href": url},
            {"rel": "root", "href": url},
            {"rel": "data", "href": f"{url}/collections"},
            {"rel": "search", "href": f"{url}/search", "method": "POST", "type": "application/geo+json"},
        ],
    }


def _collection(url: str, name: str) -> dict[str, Any]:
    return {
        "type": "Collection",
        "stac_version": "1.0.0",
        "id": name,
        "description": "scenes",
        "license": "other",
        "extent": {"spatial": {"bbox": [[-180, -90, 180, 90]]}, "temporal": {"interval": [[None, None]]}},
        "links": [{"rel": "root", "href": url}, {"rel": "self", "href": f"{url}/collections/{name}"}],
    }
