"""The fields of a prediction: classified on its finished maps, and published beside them."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from cropray import __version__
from cropray.config import PredictConfig
from cropray.errors import InputError
from cropray.maps.catalogue import publish_beside
from cropray.maps.field_files import MADE_FROM, PARQUET, write_fields
from cropray.maps.fields import classify_fields, read_fields
from cropray.maps.finished import FinishedMap, open_folder
from cropray.maps.regions import AUTO, check_installed, find_regions
from cropray.maps.request import MapPlan
from cropray.progress import say
from cropray.run import Summary
from cropray.storage import Folder

if TYPE_CHECKING:
    import geopandas as gpd

Fields: TypeAlias = "gpd.GeoDataFrame | str"
"""Fields of a file, or AUTO for the regions of each map."""


def given_fields(settings: PredictConfig) -> Fields | None:
    """The fields of `predict.fields`, None if it is empty. Raises InputError if they cannot be classified."""
    if not settings.fields:
        return None
    if not settings.scores:
        raise InputError(
            "predict.fields needs the scores of the map, but predict.scores is false. Set it to true."
        )
    if settings.fields == AUTO:
        columns = {"field_id": settings.field_id, "declared": settings.declared}
        for name in (name for name, value in columns.items() if value):
            raise InputError(
                f"predict.{name} names a column of a file of fields, but predict.fields is {AUTO}. "
                f"Leave predict.{name} out, or give the file."
            )
        check_installed()
        return AUTO
    return read_fields(settings.fields, settings.field_id, settings.declared, settings.fields_layer)


def publish_fields(
    fields: Fields | None,
    settings: PredictConfig,
    as_of: date,
    output: Folder,
    plans: Sequence[MapPlan],
) -> Summary:
    """Classify the fields on each map and write fields.parquet and fields.gpkg beside it.

    Files of the same map, fields and columns are reused. Returns the number of fields, and of those that have
    a class, over all maps. Raises InputError if no field touches a map.
    """
    if fields is None:
        return {}
    start, count, classified = time.monotonic(), 0, 0
    for plan in plans:
        folder = output.child(plan.name) if plan.name else output
        with open_folder(folder) as source, tempfile.TemporaryDirectory(prefix="cropray-") as directory:
            made_from = _made_from(settings, source)
            shown = _published(folder, made_from)
            if shown is None:
                here = find_regions(source.directory) if isinstance(fields, str) else fields
                table = classify_fields(source.directory, here, source.classes)
                shown = len(table), int(table["class"].notna().sum())
                if len(table):
                    files = write_fields(
                        table, source.classes, as_of, made_from, Path(directory), auto=isinstance(fields, str)
                    )
                    publish_beside(folder, {file.name: file.read_bytes() for file in files})
        count, classified = count + shown[0], classified + shown[1]
    if not count:
        raise InputError(f"no field of {settings.fields} lies on the map. Check its CRS, and predict.area.")
    say(f"predict: {classified} of {count} fields have a class, {time.monotonic() - start:.0f} s")
    return {"fields": count, "fields_with_class": classified}


def _made_from(settings: PredictConfig, source: FinishedMap) -> str:
    """The hash of what the fields of a map depend on."""
    given = AUTO
    if settings.fields != AUTO:
        with Path(settings.fields).expanduser().open("rb") as file:
            given = hashlib.file_digest(file, "sha256").hexdigest()
    data: list[Any] = [__version__, given, settings.field_id, settings.declared, source.checksum]
    if settings.fields_layer:
        data.append(settings.fields_layer)
    return hashlib.sha256(json.dumps(data).encode()).hexdigest()[:16]


def _published(folder: Folder, made_from: str) -> tuple[int, int] | None:
    """The number of fields in a map's file, and of those with a class; None if it was made otherwise."""
    import pyarrow.parquet as pq

    if not folder.exists(PARQUET):
        return None
    with folder.filesystem.open_input_file(folder.path(PARQUET)) as stream:
        file = pq.ParquetFile(stream)
        if (file.schema_arrow.metadata or {}).get(MADE_FROM) != made_from.encode():
            return None
        column = file.read(["class"])["class"]
    return len(column), len(column) - column.null_count
