"""Every block of configuration in docs/stac.md reads a scene of the catalogue that it is for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np
import planetary_computer
import pystac
import pytest
import yaml

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.config import Config
from cropray.config.imagery import StacConfig, StacSentinel1Config, StacSentinel2Config
from cropray.errors import InputError
from cropray.imagery.stac import StacSource
from cropray.imagery.stac_items import backscatter, find_asset, reflectance_scaling
from cropray.types import Composite, ImageRequest, Period
from tests import catalogue_items
from tests.catalogue_items import GRID, POWER, REFLECTANCE, Href, Item
from tests.conftest import ROOT
from tests.stac_server import serve

MAY = Period(date(2022, 5, 1), date(2022, 6, 1))


class Fixture(NamedTuple):
    """A scene of a catalogue."""

    make: Callable[[Path, Href], Item]
    container: str  # the folder of its files on the server
    scheme: str = "http"  # of its hrefs


ITEMS = {
    ("https://earth-search.aws.element84.com/v1", "sentinel-2-l2a"): Fixture(
        catalogue_items.earth_search_v1, "sentinel-cogs"
    ),
    ("https://earth-search.aws.element84.com/v0", "sentinel-s2-l2a-cogs"): Fixture(
        catalogue_items.earth_search_v0, "sentinel-cogs"
    ),
    ("https://planetarycomputer.microsoft.com/api/stac/v1", "sentinel-2-l2a"): Fixture(
        catalogue_items.planetary_computer_s2, "sentinel2-l2"
    ),
    ("https://planetarycomputer.microsoft.com/api/stac/v1", "sentinel-1-rtc"): Fixture(
        catalogue_items.planetary_computer_s1_rtc, "sentinel1-grd-rtc"
    ),
    ("https://stac.dataspace.copernicus.eu/v1", "sentinel-2-l2a"): Fixture(
        catalogue_items.copernicus_s2, "eodata", "s3"
    ),
    ("s1_rtc.json", "sentinel1-rtc-aws"): Fixture(catalogue_items.aws_s1_rtc, "sentinel-s1-rtc-indigo"),
}
"""By API or file, and collection."""


def blocks() -> Iterator[tuple[str, dict[str, Any]]]:
    """The heading above each block of settings, and its `source.stac`."""
    heading = ""
    text = (ROOT / "docs/stac.md").read_text()
    for found in re.finditer(r"^#+ ([^\n]*)$|^```yaml\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        heading = found[1] or heading
        if found[2]:
            yield heading, yaml.safe_load(found[2])["source"]["stac"]


BLOCKS = [(heading, sensor, stac[sensor]) for heading, stac in blocks() for sensor in stac]


@contextmanager
def catalogue(
    folder: Path, sensor: str, settings: dict[str, Any], patch: pytest.MonkeyPatch
) -> Iterator[StacConfig]:
    """The settings of a block, with a server of our own in place of the catalogue's."""
    fixture = ITEMS[settings.get("api") or settings["items"], settings["collection"]]
    items: list[Item] = []

    def answer(request: Any) -> int | dict[str, str] | None:
        """As Planetary Computer refuses URLs without a signature, and Copernicus requests without keys."""
        path = urlsplit(request.path).path
        if path.startswith("/token/"):
            return {"msft:expiry": "2099-01-01T00:00:00Z", "token": "sig=1"}
        if path.startswith(("/sentinel2-l2/", "/sentinel1-grd-rtc/")) and "sig=1" not in request.path:
            return 409
        if path.startswith("/eodata/") and "Credential=" not in request.headers.get("Authorization", ""):
            return 403
        return None

    with serve(items, folder=folder, answer=answer) as (url, _):
        base = f"s3://{fixture.container}" if fixture.scheme == "s3" else f"{url}/{fixture.container}"
        items.append(fixture.make(folder / fixture.container, lambda name: f"{base}/{name}"))
        patch.setattr(planetary_computer.sas, "BLOB_STORAGE_DOMAIN", urlsplit(url).netloc)
        patch.setattr(planetary_computer.settings.Settings.get(), "sas_url", f"{url}/token")
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "word")
        local = {**settings}
        if "api" in local:
            local["api"] = url
        else:
            local["items"], local["allow_outside"] = (
                str(folder / "items.json"),
                True,
            )  # our server is no public one
            (folder / "items.json").write_text(json.dumps({"type": "FeatureCollection", "features": items}))
        if local.get("s3", {}).get("endpoint"):
            assert local["s3"]["endpoint"].startswith("https://")
            local["s3"] = {**local["s3"], "endpoint": url}
            if local["s3"].get("profile"):
                (folder / "credentials").write_text(
                    f"[{local['s3']['profile']}]\naws_access_key_id = key\naws_secret_access_key = word\n"
                )
                patch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(folder / "credentials"))
        other = "s1" if sensor == "s2" else "s2"
        make = catalogue_items.aws_s1_rtc if other == "s1" else catalogue_items.earth_search_v1
        plain = make(folder / "other", lambda name: str(folder / "other" / name))
        (folder / "other.json").write_text(json.dumps({"type": "FeatureCollection", "features": [plain]}))
        unit = {"unit": "linear"} if other == "s1" else {}
        yield StacConfig.model_validate({sensor: local, other: {"items": str(folder / "other.json"), **unit}})


def check(got: Composite) -> None:
    """All pixels but the first hold the physical values that were written."""
    for values_chw, valid_hw, names, expected in (
        (got.s2_tchw[0], got.s2_valid_thw[0], S2_NAMES, REFLECTANCE),
        (10 ** (got.s1_tchw[0] / 10), got.s1_valid_thw[0], S1_NAMES, POWER),
    ):
        assert not valid_hw[0, 0]
        assert valid_hw[2:, 2:].all()
        for c, name in enumerate(names):
            np.testing.assert_allclose(values_chw[c][valid_hw], expected[name], rtol=1e-5)


def test_every_known_catalogue_has_a_block() -> None:
    named = {(settings.get("api") or settings["items"], settings["collection"]) for _, _, settings in BLOCKS}
    assert named == set(ITEMS)


@pytest.mark.parametrize(
    ("sensor", "settings"),
    [block[1:] for block in BLOCKS],
    ids=[f"{heading}-{sensor}" for heading, sensor, _ in BLOCKS],
)
def test_a_block_of_the_documentation_reads_its_catalogue(
    sensor: str, settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Config.model_validate({"source": {"kind": "stac", "stac": {sensor: settings}}})
    planetary_computer.sas.TOKEN_CACHE.clear()
    with catalogue(tmp_path, sensor, settings, monkeypatch) as config:
        check(StacSource(config).composite(ImageRequest(GRID, GRID, (MAY,))))
        assert StacSource(config).identity()["s1_quantity"] == "gamma0"


def item(make: Callable[[Path, Href], Item], folder: Path, **properties: Any) -> pystac.Item:
    found = make(folder, lambda name: f"https://host/{name}")
    found["properties"] |= properties
    return pystac.Item.from_dict(found)


@pytest.mark.parametrize("unit", [{}, {"quantity": "gamma0", "unit": "linear"}])
def test_raw_grd_of_every_catalogue_is_refused(unit: dict[str, Any], tmp_path: Path) -> None:
    scene = item(catalogue_items.raw_grd, tmp_path)
    with pytest.raises(InputError, match=r"S1A_IW_GRDH_1SDV_20220504.*not geocoded.*[Rr]aw GRD"):
        backscatter(scene, scene.assets["vv"], StacSentinel1Config(**unit))


def test_the_quantity_of_aws_is_the_role_of_its_assets(tmp_path: Path) -> None:
    scene = item(catalogue_items.aws_s1_rtc, tmp_path)
    found = find_asset(scene, ("vv", "VV"))
    assert backscatter(scene, found, StacSentinel1Config(unit="linear")).quantity == "gamma0"
    with pytest.raises(InputError, match=r"quantity gamma0, but source\.stac\.s1\.quantity is sigma0"):
        backscatter(scene, found, StacSentinel1Config(unit="linear", quantity="sigma0"))


@pytest.mark.parametrize(
    ("properties", "offset"),
    [
        ({}, 0.0),
        ({"sentinel:boa_offset_applied": False}, -0.1),
        ({"sentinel:boa_offset_applied": None}, -0.1),
        ({"sentinel:boa_offset_applied": None, "sentinel:processing_baseline": None}, -0.1),
        (
            {
                "sentinel:boa_offset_applied": None,
                "sentinel:processing_baseline": None,
                "sentinel:product_id": "S2A_MSIL2A_20200714T115221_N0214_R123_T28QCH_20200714T191310",
            },
            0.0,
        ),
    ],
)
def test_the_offset_of_earth_search_v0(properties: dict[str, Any], offset: float, tmp_path: Path) -> None:
    scene = item(catalogue_items.earth_search_v0, tmp_path, **properties)
    assert reflectance_scaling(scene, scene.assets["B04"], StacSentinel2Config()).offset == offset


@pytest.mark.parametrize("flag", [{}, {"earthsearch:boa_offset_applied": False}])
def test_collection_1_of_earth_search_keeps_the_offset_of_the_product(
    flag: dict[str, Any], tmp_path: Path
) -> None:
    scene = item(catalogue_items.earth_search_v1, tmp_path)
    del scene.properties["earthsearch:boa_offset_applied"]
    scene.properties |= {"s2:processing_baseline": "05.00", **flag}
    found = find_asset(scene, ("B04", "red"))
    assert reflectance_scaling(scene, found, StacSentinel2Config()) == (1e-4, -0.1)


def test_the_finest_resolution_is_taken_and_no_colour_image(tmp_path: Path) -> None:
    scene = item(catalogue_items.copernicus_s2, tmp_path)
    names = {name: find_asset(scene, (name,)) for name in (*S2_NAMES, "SCL")}
    keys = {asset: key for key, asset in scene.assets.items()}
    assert {keys[asset] for asset in names.values()} == {
        *(f"B{band}_10m" for band in ("02", "03", "04", "08")),
        *(f"B{band}_20m" for band in ("05", "06", "07", "8A", "11", "12")),
        "SCL_20m",
    }


def test_other_keys_are_a_setting(tmp_path: Path) -> None:
    """A catalogue whose keys say nothing, and whose metadata do not either."""
    scene = catalogue_items.earth_search_v0(tmp_path, lambda name: str(tmp_path / name))
    scene["assets"] = {f"layer{i}": asset for i, asset in enumerate(scene["assets"].values())}
    radar = catalogue_items.aws_s1_rtc(tmp_path, lambda name: str(tmp_path / name))
    for name, found in (("s2", scene), ("s1", radar)):
        (tmp_path / f"{name}.json").write_text(json.dumps({"type": "FeatureCollection", "features": [found]}))
    keys = {band: f"layer{i}" for i, band in enumerate(catalogue_items.COMMON_NAMES)}
    s1 = StacSentinel1Config(items=str(tmp_path / "s1.json"), unit="linear")

    def source(assets: dict[str, str]) -> StacSource:
        return StacSource(
            StacConfig(s2=StacSentinel2Config(items=str(tmp_path / "s2.json"), assets=assets), s1=s1)
        )

    request = ImageRequest(GRID, GRID, (MAY,))
    check(source(keys).composite(request))
    assert source(keys).identity() != source({**keys, "B02": "layer1"}).identity()
    with pytest.raises(InputError, match=r"no asset for B02.*layer0, layer1.*source\.stac\.s2\.assets"):
        source({}).composite(request)
    with pytest.raises(InputError, match=r"no asset 'layer99' for SCL.*layer0"):
        source({**keys, "SCL": "layer99"}).composite(request)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"assets": None}, "not a STAC"),
        ({"geometry": {"type": "Polygon", "coordinates": [[[float("nan"), 0], [1, 1], [2, 2]]]}}, "geometry"),
        (
            {"geometry": {"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 1], [1, 1], [0, 0]]]}},
            "geometry",
        ),
        ({"geometry": "POINT (0 0)"}, "geometry"),
        ({"properties": None}, "not a STAC"),
        ({"properties": {"datetime": "yesterday"}}, "not a STAC"),
        ({"B02_10m": {"href": 5}}, "not a STAC"),
        ({"B02_10m": {"raster:scale": "x"}}, "raster:scale 'x'"),
        ({"B02_10m": {"raster:scale": 0}}, "raster:scale 0"),
        ({"B02_10m": {"raster:offset": float("inf")}}, "raster:offset inf"),
    ],
)
def test_items_of_another_form_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    scene = catalogue_items.copernicus_s2(tmp_path, lambda name: str(tmp_path / name))
    for key, value in change.items():
        if key in scene["assets"]:
            scene["assets"][key] |= value
        else:
            scene[key] = value
    (tmp_path / "s2.json").write_text(json.dumps({"type": "FeatureCollection", "features": [scene]}))
    source = StacSource(StacConfig(s2=StacSentinel2Config(items=str(tmp_path / "s2.json"))))
    with pytest.raises(InputError, match=words):
        source.composite(ImageRequest(GRID, GRID, (MAY,)))
