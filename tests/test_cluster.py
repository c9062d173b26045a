"""What Ray workers, which run in another directory, are given."""

from pathlib import Path

import pytest

from cropray.config import Config
from cropray.overrides import updated
from cropray.pipeline.cluster import for_workers


def maps(class_map: str, truth: str) -> Config:
    """A configuration that takes its labels from two maps."""
    settings = {"path": class_map, "codes": [1]}
    labels = {"class_map": settings, "truth": settings | {"path": truth}}
    return Config.model_validate({"classes": ["maize"], "labels": labels})


def test_workers_read_relative_paths_from_the_directory_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"source.stac.s2.items": "s2.json", "source.earthengine.service_account_key": "key.json"}
    config = updated(maps("maps/2019.tif", "../truth.tif"), given)
    there = for_workers(config)
    assert there.labels.class_map is not None
    assert there.labels.truth is not None
    assert there.labels.class_map.path == str(tmp_path / "maps/2019.tif")
    assert Path(there.labels.truth.path).resolve() == tmp_path.parent / "truth.tif"
    assert there.source.stac.s2.items == str(tmp_path / "s2.json")
    assert there.source.earthengine.service_account_key == str(tmp_path / "key.json")


@pytest.mark.parametrize(
    "path", ["/data/a.tif", "source:truth", "s3://maps/a.tif", "/vsis3/maps/a.tif", "NETCDF:/data/a.nc:ct"]
)
def test_what_does_not_depend_on_a_directory_is_left_as_it_is(path: str) -> None:
    assert for_workers(maps(path, path)) == maps(path, path)


def test_settings_that_are_not_given_stay_so() -> None:
    assert for_workers(Config()) == Config()


def test_what_exports_ask_for_is_no_resource_of_rays_own() -> None:
    assert Config.model_validate({"ray": {"export_resources": {"ee": 0.5}}}).ray.export_resources == {
        "ee": 0.5
    }
    with pytest.raises(ValueError, match=r"GPU is Ray's own; wanted custom resources"):
        Config.model_validate({"ray": {"export_resources": {"GPU": 1}}})
