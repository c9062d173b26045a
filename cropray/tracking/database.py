"""MLflow's SQLite database: made whole, and told where its files lie when its run folder was moved."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cropray.progress import say
from cropray.storage import Folder
from cropray.types import InputError

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
