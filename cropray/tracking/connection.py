"""MLflow's SQLite database: made whole, and told where its files lie when its run folder was moved."""

from __future__ import annotations

import re
import sqlite3
import textwrap
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from cropray.errors import InputError
from cropray.progress import say
from cropray.storage import Folder

_FILES = "artifacts"
_OWN = "/mlflow/artifacts"
"""How the location of the files ends, of every experiment in a run folder's own database."""

# All columns in which MLflow keeps where files are, as absolute URIs.
_MOVES = (
    "UPDATE runs SET artifact_uri = replace(artifact_uri, :there, :here)",
    "UPDATE logged_models SET artifact_location = replace(artifact_location, :there, :here)",
    "UPDATE model_versions SET source = replace(source, :there, :here)",
    "UPDATE model_versions SET storage_location = replace(storage_location, :there, :here)",
    "UPDATE experiments SET artifact_location = :here WHERE artifact_location = :there",
)


def sqlite_file(uri: str) -> Path | None:
    """The database file of a URI; None where it is another kind, or has options of SQLite (`file:…`)."""
    path = uri.removeprefix("sqlite:///")
    return None if path == uri or path.startswith("file:") else Path(path)


def files_beside(database: Path) -> str:
    """Where artifacts go: a server knows that itself, a database's lie beside it."""
    return (database.parent / _FILES).absolute().as_uri()


def make_whole(database: Path) -> None:
    """Make a database that is not there yet; MLflow cannot go on with one of half its tables."""
    from mlflow import MlflowClient

    if database.exists():
        return
    with Folder(str(database.parent)).making(database.name) as temporary:
        uri = f"sqlite:///{temporary}"
        MlflowClient(tracking_uri=uri, registry_uri=uri).search_experiments(max_results=1)


def follow(database: Path) -> None:
    """Where a run folder was moved or copied, its own database is told so: files are here now.

    Runs, versions, aliases and tags stay as they are. Raises InputError where it may not be written.
    """
    here = files_beside(database)
    if not database.exists():
        return
    try:
        with closing(sqlite3.connect(database)) as connection, connection:
            found = connection.execute("SELECT artifact_location FROM experiments").fetchall()
            for there in {str(row[0]) for row in found} - {here}:
                if there.endswith(_OWN):
                    for statement in _MOVES:
                        connection.execute(statement, {"there": there, "here": here})
                    say(f"mlflow: the run folder was moved; its files are in {here}, no more in {there}")
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{database}, MLflow's database of this run, cannot be used: {error}; get the permission to "
            "write it, put back a copy of it, or move it away and register the run's model anew (cropray "
            "register)"
        ) from error


_LONGEST = 300  # characters of an error that is not known here
_OF_SQLALCHEMY = re.compile(r" ?(\[SQL:|\(Background on this error).*", re.DOTALL)  # statements and a link

REACH = (
    "is it up, and may this machine reach it? Correct tracking.uri, or leave it out: then MLflow's database "
    "is a file in the run folder"
)
_OTHER_KIND = "wanted http://HOST:PORT of an MLflow server, or a database as sqlite:///FILE"
_LOG_IN = (
    "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of a user who may "
    "do this"
)
_UNREACHED = ("cannot be reached", REACH)
_NO_MLFLOW = (
    "answers, but not as an MLflow server does",
    "correct tracking.uri: host, port, and the path, if it stands behind another server",
)
_NO_ADDRESS = ("is no address", _OTHER_KIND)
_UNKNOWN_USER = ("does not know who asks (401)", _LOG_IN)
_FORBIDDEN = ("does not permit this", _LOG_IN)
_FOLDER = (
    "is a folder of files, which MLflow has given up",
    f"{_OTHER_KIND}; mlflow migrate-filestore takes along what is there",
)
# What MLflow and its database say, for they have no class of its own for each.
_KNOWN = (
    ("error responses", ("answers with errors alone", "look into its log, and run the same command again")),
    ("Max retries exceeded", _UNREACHED),
    ("Connection aborted", _UNREACHED),
    ("onnection refused", _UNREACHED),
    ("not in a valid JSON format", _NO_MLFLOW),
    ("error code 404", _NO_MLFLOW),
    ("error code 405", _NO_MLFLOW),
    ("error code 401", _UNKNOWN_USER),
    ("Unauthorized", _UNKNOWN_USER),
    ("error code 403", _FORBIDDEN),
    ("Permission denied", _FORBIDDEN),
    ("PERMISSION_DENIED", _FORBIDDEN),
    ("unsupported URI", ("is of a kind that MLflow does not know", _OTHER_KIND)),
    ("Could not parse SQLAlchemy URL", _NO_ADDRESS),
    ("Invalid url", _NO_ADDRESS),
    ("filesystem tracking backend", _FOLDER),
    (
        "readonly database",
        (
            "is a database that may be read and not written",
            "get the permission, or set tracking.uri to another",
        ),
    ),
    ("not a database", ("is a file, but not a database", "correct tracking.uri, or put back a copy of it")),
)
_REMEDY = "mend it or make room, and run the same command again: what is finished is kept"


@contextmanager
def server_errors(uri: str) -> Iterator[None]:
    """What the server or database of a URI refuses or fails to do becomes an InputError with what helps."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError) as error:
        reason = shown(_OF_SQLALCHEMY.sub("", str(error)))
        found = textwrap.shorten(reason, _LONGEST, placeholder=" …")
        other = (f"failed: {found}", _REMEDY)
        problem, remedy = next((known for sign, known in _KNOWN if sign in reason), other)
        raise InputError(f"MLflow at {shown(uri)} (tracking.uri) {problem}; {remedy}") from error


def shown(uri: str) -> str:
    """A URI, or a text with one, without the password that may stand in it."""
    return re.sub(r"//[^@/\s]*@", "//…@", uri)


@contextmanager
def address_errors(uri: str) -> Iterator[None]:
    """As `server_errors`, while a client is made: addresses that cannot be one, and a database's driver."""
    try:
        with server_errors(uri):
            yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"MLflow at {shown(uri)} (tracking.uri) needs the package {error.name}, which is not installed: "
            "install it wherever the stages run"
        ) from error
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f"MLflow at {shown(uri)} (tracking.uri) is no address ({error}); {_OTHER_KIND}"
        ) from error
