"""MLflow clients by URI, and what MLflow reports as errors that say what to do."""

from __future__ import annotations

import logging
import os
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from cropray.errors import InputError, redacted
from cropray.run import Run
from cropray.storage import Folder, within

if TYPE_CHECKING:
    from mlflow import MlflowClient

ARTIFACTS = "mlflow/artifacts"
"""Where a run folder's own database keeps files, below the run folder."""

_DATABASE = "mlflow/mlflow.db"
_ANSWER_S = 30.0  # MLflow's client alone would wait four times two minutes
_SQL_DETAILS = re.compile(r" ?(\[SQL:|\(Background on this error).*", re.DOTALL)  # statements and a link

_REACH = (
    "check that it runs and that this machine can reach it. Correct tracking.uri, or leave it out: MLflow's "
    "database is then a file in the run folder"
)
_WANTED = "wanted http://HOST:PORT of an MLflow server, or a database as sqlite:///FILE"
_LOG_IN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user with "
    "this permission"
)
# MLflow and its database have no error class for each of these, so their text tells them apart.
_KNOWN = {
    "error responses": "answers with errors only; read its log, then run the same command again",
    "Max retries exceeded|Connection aborted|onnection refused": f"cannot be reached; {_REACH}",
    "not in a valid JSON format|error code 40[45]": "answers, but not as an MLflow server does; correct the "
    "host, port and path in tracking.uri (a path only if it is behind another server)",
    "error code 401|Unauthorized": f"does not know you (401); {_LOG_IN}",
    "error code 403|Permission denied|PERMISSION_DENIED": f"does not permit this; {_LOG_IN}",
    "unsupported URI": f"is of a kind that MLflow does not support; {_WANTED}",
    "Could not parse SQLAlchemy URL|Invalid url": f"is not an address; {_WANTED}",
    "filesystem tracking backend": f"is a folder of files, which MLflow no longer supports; {_WANTED}. "
    "mlflow migrate-filestore converts such a folder",
    "readonly database": "is a database that you may read but not write; get permission to write it, or set "
    "tracking.uri to another",
    "not a database": "is a file but not a database; correct tracking.uri, restore the file, or move it away "
    "and register the run's model again (cropray models register)",
}


def tracking_uri(run: Run) -> str:
    """`tracking.uri`, or the SQLite database of the run folder. Raises InputError on object storage."""
    if run.config.tracking.uri:
        return run.config.tracking.uri
    if not run.folder.is_local:
        raise InputError(
            f"the run folder {run.folder} is not on a local file system, so MLflow's database cannot be in "
            "it; set tracking.uri to an MLflow server (http://HOST:PORT) or to a database URL"
        )
    return f"sqlite:///{run.folder.local(_DATABASE)}"


def sqlite_file(uri: str) -> Path | None:
    """The database file of a URI. None for another kind, or if SQLite gets options (`file:…`)."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri or path.startswith("file:") else Path(path)


def open_client(uri: str, answer_s: float = _ANSWER_S) -> MlflowClient:
    """A client of a tracking server and its registry. A SQLite file that does not exist is created.

    `${VARIABLE}` in the URI stands for an environment variable, whose value is written nowhere. Raises
    InputError if the address is wrong or the server does not answer within `answer_s` seconds.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Standard output is for the results of the stages.
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # The user learns of an absent server in seconds, not after minutes of retries.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    from mlflow import MlflowClient

    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)  # it raises what it logs as errors
    database = sqlite_file(uri)
    with _address_errors(uri):
        if database is not None and not database.exists():
            # It is created whole: MLflow cannot continue with half of its tables.
            with Folder(str(database.parent)).making(database.name) as temporary:
                new = f"sqlite:///{temporary}"
                MlflowClient(tracking_uri=new, registry_uri=new).search_experiments(max_results=1)
        address = _expanded(uri)
        client = MlflowClient(tracking_uri=address, registry_uri=address)
        try:
            within(answer_s, lambda: client.search_experiments(max_results=1))
        except TimeoutError as error:
            raise InputError(f"MLflow at {uri} (tracking.uri) gives {error}: {_REACH}") from error
    return client


def open_existing(run: Run) -> MlflowClient | None:
    """A client of the run's server, or None if the run has neither a server nor a database yet."""
    database = sqlite_file(tracking_uri(run))
    return None if database is not None and not database.exists() else open_client(tracking_uri(run))


def try_writing(uri: str) -> bool:
    """Write to the database of a URI without changing it. False for a server: it offers no such test.

    Raises InputError if the database cannot be written.
    """
    from sqlalchemy import NullPool, create_engine, text

    if uri.startswith("http"):
        return False
    with _address_errors(uri), create_engine(_expanded(uri), poolclass=NullPool).connect() as connection:
        connection.execute(text("UPDATE experiments SET name = name WHERE 1 = 0"))
        connection.rollback()
    return True


@contextmanager
def server_errors(uri: str) -> Iterator[None]:
    """Turn errors of the server or database at a URI into InputError with a remedy."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = redacted(_SQL_DETAILS.sub("", str(error)))
        short = textwrap.shorten(reason, 300, placeholder=" …")
        failed = f"failed: {short}; fix the cause or free some space, then run the same command again"
        problem = next((known for pattern, known in _KNOWN.items() if re.search(pattern, reason)), failed)
        raise InputError(f"MLflow at {uri} (tracking.uri) {problem}") from error


def quoted(text: str) -> str:
    """A string in a condition of MLflow's search."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def _expanded(uri: str) -> str:
    """The URI with the values of the environment variables that it names as `${VARIABLE}`."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise InputError(f"tracking.uri names the variable {match[1]}, which is not set; set it")
        return quote(os.environ[match[1]], safe="")

    return re.sub(r"\$\{(\w+)\}", value, uri)


@contextmanager
def _address_errors(uri: str) -> Iterator[None]:
    """Like `server_errors`, and for addresses that are malformed or whose driver is missing."""
    try:
        with server_errors(uri):
            yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"MLflow at {uri} (tracking.uri) needs the package {error.name}, which is not "
            "installed: install it on every machine that runs a stage"
        ) from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(f"MLflow at {uri} (tracking.uri) is not an address ({error}); {_WANTED}") from error
