"""An MLflow that cannot be used: the message names it, the problem and a remedy."""

import json
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from mlflow.exceptions import MlflowException

from cropray.config import Config
from cropray.config.load import updated
from cropray.doctor import Finding, examine_tracking
from cropray.errors import InputError
from cropray.tracking.connection import open_client, server_errors

URI = "http://127.0.0.1:5000"


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def message_for(uri: str) -> str:
    with pytest.raises(InputError) as error:
        open_client(uri)
    message = str(error.value)
    assert message.startswith(f"MLflow at {uri} (tracking.uri) ")
    assert "\n" not in message
    assert len(message) < 450
    return message


@contextmanager
def web_server(status: int, body: str) -> Iterator[str]:
    """An HTTP server on the loopback with the same answer to every request."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


def test_a_server_that_cannot_be_reached() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be reached; check that it runs" in message_for(f"http://127.0.0.1:{port}")


@pytest.mark.parametrize(
    ("status", "body", "problem"),
    [
        (
            200,
            "<html>hello</html>",
            "not as an MLflow server does; correct the host, port",
        ),
        (
            404,
            "<html>nothing</html>",
            "not as an MLflow server does; correct the host, port",
        ),
        (500, "<html>sorry</html>", "answers with errors only; read its log"),
        (401, "who are you?", "does not know you (401); set MLFLOW_TRACKING_USERNAME"),
        (403, json.dumps({"error_code": "PERMISSION_DENIED"}), "does not permit this; set MLFLOW_TRACKING"),
    ],
)
def test_a_server_that_is_not_mlflow_or_refuses(status: int, body: str, problem: str) -> None:
    with web_server(status, body) as uri:
        assert problem in message_for(uri)


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("ftp://127.0.0.1/mlflow", "is of a kind that MLflow does not support; wanted http://HOST:PORT"),
        ("sqlite:/mlflow.db", "is not an address; wanted http://HOST:PORT"),
        ("http:/127.0.0.1", "is not an address; wanted http://HOST:PORT"),
        ("http://[127.0.0.1", "is not an address (Invalid IPv6 URL); wanted http://HOST:PORT"),
        ("mssql://127.0.0.1/mlflow", "needs the package pyodbc, which is not installed"),
    ],
)
def test_an_address_that_mlflow_cannot_use(uri: str, problem: str) -> None:
    assert problem in message_for(uri)


def test_a_file_that_is_not_a_database_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "junk.db").write_text("not a database " * 100)
    assert "is a file but not a database; correct tracking.uri" in message_for(
        f"sqlite:///{tmp_path}/junk.db"
    )
    assert "is a folder of files, which MLflow no longer supports; wanted http" in message_for(
        f"file://{tmp_path}/mlruns"
    )


def test_a_read_only_database(tmp_path: Path) -> None:
    open_client(f"sqlite:///{tmp_path}/mlflow.db")
    reader = open_client(f"sqlite:///file:{tmp_path}/mlflow.db?mode=ro&uri=true")
    with (
        pytest.raises(InputError, match=r"read but not write; .*tracking\.uri"),
        server_errors(URI),
    ):
        reader.create_registered_model("cropray")


def test_doctor_writes_to_a_database_and_leaves_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # MLflow makes a folder of the name `file:`
    database = tmp_path / "mlflow.db"
    open_client(f"sqlite:///{database}")
    before = database.read_bytes()
    finding = examine_tracking(updated(Config(), {"tracking.uri": f"sqlite:///{database}"}), None)
    assert finding == Finding("tracking", "ok", f"sqlite:///{database} can be read and written")
    read_only = f"sqlite:///file:{database}?mode=ro&uri=true"
    finding = examine_tracking(updated(Config(), {"tracking.uri": read_only}), None)
    assert finding.verdict == "bad"
    assert "read but not write" in finding.found
    assert database.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["mlflow.db"]


def test_an_unknown_error_is_shown_without_sql_and_cut_between_words() -> None:
    text = "the disk is on fire " * 50
    with pytest.raises(InputError) as error, server_errors(URI):
        raise MlflowException(f"(sqlite3.OperationalError) {text}\n[SQL: INSERT INTO runs]\n(Background on")
    before, _, after = str(error.value).partition("; ")
    assert before.startswith(f"MLflow at {URI} (tracking.uri) failed: (sqlite3.Operational")
    assert len(before) < 400
    assert set(before.split()[6:]) == {*text.split(), "…"}
    assert "run the same command again" in after
    with pytest.raises(InputError, match=r"failed: full; "), server_errors(URI):
        raise MlflowException("full\n[SQL: INSERT INTO runs]\n(Background on this error at: a link)")


def test_sqlalchemy_errors_are_reported_too() -> None:
    from sqlalchemy.exc import OperationalError

    locked = OperationalError("UPDATE runs", {}, sqlite3.OperationalError("database is locked"))
    with pytest.raises(InputError, match=r"failed: .*database is locked; "), server_errors(URI):
        raise locked


def test_a_password_in_an_error_of_mlflow_is_not_shown() -> None:
    with pytest.raises(InputError) as error, server_errors("http://me:${PASSWORD}@127.0.0.1:5000"):
        raise MlflowException("no luck with http://me:p@ss@127.0.0.1:5000/api, sorry")
    assert "ss@" not in str(error.value)
    assert "no luck with http://…@127.0.0.1:5000/api, sorry" in str(error.value)
