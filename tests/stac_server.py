"""A small real STAC API on the loopback: landing page, collections, item search with pages."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PAGE = 2  # items a page, so that clients must follow links
_CONFORMS_TO = (
    "https://api.stacspec.org/v1.0.0/core",
    "https://api.stacspec.org/v1.0.0/item-search",
    "https://api.stacspec.org/v1.0.0/collections",
)


@contextmanager
def serve(
    items: list[dict[str, Any]], *, conforms_to: tuple[str, ...] = _CONFORMS_TO
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Yields the URL and the list of searches made so far."""
    searches: list[dict[str, Any]] = []
    collections = {f"/collections/{item['collection']}": item["collection"] for item in items}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path == "/":
                self._answer(_landing(url) | {"conformsTo": conforms_to})
            elif self.path in collections:
                self._answer(_collection(url, collections[self.path]))
            else:
                self._answer({"code": "NotFound", "description": f"no {self.path}"}, 404)

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

        def _answer(self, body: dict[str, Any], status: int = 200) -> None:
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
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
    if "datetime" in query:
        start, end = query["datetime"].split("/")
        if not start <= item["properties"]["datetime"] <= end:
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
