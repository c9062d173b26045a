"""Where items may point, how keys and signatures reach the files, and what an error says to set."""

from __future__ import annotations

import re
import socket
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import planetary_computer
import pystac
import pytest
import rasterio
import rasterio.shutil

from cropray.config import Config
from cropray.config.imagery import (
    StacCollectionConfig,
    StacS3Config,
    StacSentinel1Config,
    StacSentinel2Config,
)
from cropray.errors import InputError
from cropray.grid import Grid
from cropray.imagery.stac_access import Access, DeadAssetError, gdal_path, s3_options
from cropray.types import FloatArray
from tests.catalogue_items import GRID, write
from tests.stac_server import serve

API = "https://93.184.216.34/stac/v1"


def read(href: str, home: str, grid: Grid = GRID, **settings: Any) -> FloatArray:
    item = pystac.Item("S2X", None, None, datetime(2022, 5, 4, tzinfo=UTC), {})
    asset = pystac.Asset(href)
    asset.set_owner(item)
    access = Access(home, "source.stac.s2", StacCollectionConfig(**settings))
    return access.read(item, asset, grid, bilinear=False, nodata=0)


def refused(href: str, home: str, **settings: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(href, home, **settings)
    return str(caught.value)


# --- where items may point ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("href", "path"),
    [
        ("https://93.184.216.34/a/B02.tif", "/vsicurl/https://93.184.216.34/a/B02.tif"),
        ("https://93.184.216.34/B02.tif?sig=1&se=2", "/vsicurl/https://93.184.216.34/B02.tif?sig=1&se=2"),
        ("s3://eodata/Sentinel-2/B02_10m.jp2", "/vsis3/eodata/Sentinel-2/B02_10m.jp2"),
        ("S3://eodata/a.tif", "/vsis3/eodata/a.tif"),
        ("gs://gcp-public-data-sentinel-2/a.jp2", "/vsigs/gcp-public-data-sentinel-2/a.jp2"),
        ("az://container/a.tif", "/vsiaz/container/a.tif"),
    ],
)
def test_objects_and_public_servers_are_read(href: str, path: str, tmp_path: Path) -> None:
    for home in (API, str(tmp_path / "items.json"), "s3://bucket/items.json"):
        assert gdal_path(href, home, allow_outside=False) == path


@pytest.mark.parametrize(
    "href",
    [
        "http://93.184.216.34/B02.tif",
        "ftp://93.184.216.34/B02.tif",
        "zip://archive.zip!B02.tif",
        "vrt:///data/B02.tif?bands=1",
        "https://127.0.0.1/B02.tif",
        "https://2130706433/B02.tif",
        "https://0x7f.1/B02.tif",
        "https://[::1]/B02.tif",
        "https://[::ffff:127.0.0.1]/B02.tif",
        "https://localhost/B02.tif",
        "https://169.254.169.254/latest/meta-data/",
        "https://10.1.2.3/B02.tif",
        "https://192.168.0.1/B02.tif",
        "https://93.184.216.34@10.1.2.3/B02.tif",
        "https://user:word@93.184.216.34/B02.tif",
        "https://10.1.2.3\\@93.184.216.34/B02.tif",
        "https://93.184.216.34/B02.tif\nGDAL_HTTP_HEADERS=x",
        "https:///B02.tif",
        "https://%31%32%37.0.0.1/B02.tif",
        "https://127。0。0。1/B02.tif",
        "https://a..b/B02.tif",
        "https://[::1/B02.tif",
        "https://93.184.216.34:99999/B02.tif",
        "s3://93.184.216.34#/B02.tif",
        "s3://bucket",
        "s3:///B02.tif",
        "/etc/hostname",
        "file:///etc/hostname",
        "/vsicurl/https://93.184.216.34/B02.tif",
        "/vsizip//vsicurl/https://93.184.216.34/a.zip/B02.tif",
        "/vsis3/bucket/B02.tif",
        "/vsistdin/",
        "/dev/zero",
        "GTIFF_RAW:/etc/hostname",
        "<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>",
        '{"type": "FeatureCollection"}',
        "a" * 5000,
        "\x00",
    ],
)
def test_an_item_of_an_api_cannot_point_elsewhere(href: str, tmp_path: Path) -> None:
    for home in (API, str(tmp_path / "items.json")):
        assert "the STAC item S2X: cannot use the href" in refused(href, home)


def test_a_name_that_leads_into_a_private_network_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def resolve(host: str, *_: Any, **__: Any) -> list[Any]:
        addresses = {"evil.example": ["93.184.216.34", "10.0.0.7"], "good.example": ["93.184.216.34"]}
        if host not in addresses:
            raise socket.gaierror("unknown")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses[host]]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    with pytest.raises(InputError, match=r"evil\.example is 10\.0\.0\.7"):
        gdal_path("https://evil.example/a.tif", API, allow_outside=False)
    assert gdal_path("https://good.example/a.tif", API, allow_outside=False).endswith("good.example/a.tif")
    # Names that only a proxy knows, and the server of the catalogue itself.
    assert gdal_path("https://unknown.example/a.tif", API, allow_outside=False)
    assert gdal_path("https://evil.example/a.tif", "https://evil.example/stac", allow_outside=False)
    with pytest.raises(InputError, match="evil"):
        gdal_path("https://evil.example:8443/a.tif", "https://evil.example/stac", allow_outside=False)


def test_a_server_cannot_redirect_elsewhere(tmp_path: Path) -> None:
    targets = {"/inside": "/B02.tif", "/outside": "http://169.254.169.254/latest", "/loop": "/loop"}
    targets |= {"/twice": "/outside", "/file": "file:///etc/hostname"}
    write(tmp_path / "B02.tif", 500, 10, "uint16", 0)
    with serve([], folder=tmp_path, answer=lambda request: targets.get(request.path)) as (url, _):
        assert read(f"{url}/inside", url)[1, 1] == 500
        for name, words in (
            ("outside", "169.254"),
            ("twice", "169.254"),
            ("file", "hostname"),
            ("loop", "5 times"),
        ):
            message = refused(f"{url}/{name}", url)
            assert "redirected" in message
            assert words in message


def test_files_are_read_below_the_catalogue(tmp_path: Path) -> None:
    folder = tmp_path / "catalogue"
    home = str(folder / "items.json")
    write(folder / "scene one" / "B02.tif", 500, 10, "uint16", 0)
    write(tmp_path / "outside.tif", 500, 10, "uint16", 0)
    (folder / "link.tif").symlink_to(tmp_path / "outside.tif")
    for href in (str(folder / "scene one" / "B02.tif"), (folder / "scene one" / "B02.tif").as_uri()):
        for where in (home, (folder / "items.json").as_uri()):
            assert read(href, where)[1, 1] == 500
    for href in ("link.tif", "../outside.tif", "scene one/../../outside.tif"):
        message = refused(str(folder / href), home)
        assert "the folder of the catalogue" in message
        assert "source.stac.s2.allow_outside: true" in message
        assert read(str(folder / href), home, allow_outside=True)[1, 1] == 500
    message = refused(str(folder / "gone.tif"), home)
    assert "no such file" in message
    assert "allow_outside" not in message
    for api in (API, "s3://bucket/items.json"):
        assert "a file of this machine" in refused(str(folder / "scene one" / "B02.tif"), api)


@pytest.mark.parametrize("href", ["/vsicurl/https://93.184.216.34/B02.tif", "/dev/zero", "GTIFF_RAW:/a.tif"])
def test_trust_does_not_extend_to_what_is_no_file(href: str, tmp_path: Path) -> None:
    assert "no such file" in refused(href, str(tmp_path / "items.json"), allow_outside=True)


def test_a_file_cannot_name_another_file(tmp_path: Path) -> None:
    """Whatever a file is called: GDAL would open what a VRT names, or the overview that a TIFF names."""
    home = str(tmp_path / "items.json")
    write(tmp_path / "B02.tif", 500, 10, "uint16", 0)
    source = f"<SourceFilename>{tmp_path / 'B02.tif'}</SourceFilename>"
    (tmp_path / "vrt.tif").write_text(
        f'<VRTDataset rasterXSize="24" rasterYSize="16"><SRS>{GRID.crs}</SRS>'
        f"<GeoTransform>{GRID.x0}, 10, 0, {GRID.y0}, 0, -10</GeoTransform><VRTRasterBand band='1' "
        f'dataType="UInt16"><SimpleSource>{source}</SimpleSource></VRTRasterBand></VRTDataset>'
    )
    with rasterio.open(tmp_path / "vrt.tif") as dataset:
        assert dataset.read(1).max() == 500  # so it is a working VRT
    assert "not recognized" in refused(str(tmp_path / "vrt.tif"), home)
    write(tmp_path / "overview.tif", 500, 10, "uint16", 0)
    with rasterio.open(tmp_path / "overview.tif", "r+") as dataset:
        dataset.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(tmp_path / "vrt.tif"))
    assert "names another file" in refused(str(tmp_path / "overview.tif"), home)
    # What lies beside a file is not opened either, though GDAL would read a coarse grid from it.
    for name in ("B02.tif.ovr", "B02.tif.msk"):
        (tmp_path / name).write_bytes((tmp_path / "vrt.tif").read_bytes().replace(b"B02", b"secret"))
    write(tmp_path / "secret.tif", 999, 10, "uint16", 0)
    coarse = Grid(GRID.crs, GRID.x0, GRID.y0, 80, 2, 3)
    assert (read(str(tmp_path / "B02.tif"), home, grid=coarse) == 500).all()
    (tmp_path / "B02.tif.aux.xml").write_text(
        '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">vrt.tif</MDI>'
        "</Metadata></PAMDataset>"
    )
    assert read(str(tmp_path / "B02.tif"), home)[1, 1] == 500


def test_raw_grd_in_radar_geometry_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vv.tif"
    corners = [(row, col) for row in (0, 15) for col in (0, 23)]
    points = [rasterio.control.GroundControlPoint(r, c, 10 + c / 100, 50 - r / 100) for r, c in corners]
    write(path, 300, 10, "uint16", 0, crs="EPSG:4326", transform=None, gcps=points)
    assert "raw GRD" in refused(str(path), str(tmp_path / "items.json"))


def test_a_coarse_grid_is_read_from_overviews(tmp_path: Path) -> None:
    big = Grid(GRID.crs, GRID.x0, GRID.y0, 10, 1024, 1024)
    write(tmp_path / "big.tif", 500, 10, "uint16", None, grid=big)
    rasterio.shutil.copy(
        tmp_path / "big.tif", tmp_path / "cog.tif", driver="COG", blocksize=256, compress="none"
    )
    ranges: list[str] = []
    coarse = Grid(GRID.crs, GRID.x0, GRID.y0, 40, 256, 256)
    with serve([], folder=tmp_path, answer=lambda r: ranges.append(r.headers.get("Range", ""))) as (url, _):
        assert (read(f"{url}/cog.tif", url, grid=coarse) == 500).all()
    spans = [re.fullmatch(r"bytes=(\d+)-(\d+)", text) for text in ranges]
    read_bytes = sum(int(span[2]) - int(span[1]) + 1 for span in spans if span)
    assert 256 * 256 * 2 < read_bytes < 1024 * 1024 * 2 / 4


# --- keys and signatures --------------------------------------------------------------------------------


def test_settings_of_s3_reach_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b", "c"):  # GDAL keeps what it has read
        write(tmp_path / "eodata" / f"{name}.tif", 500, 10, "uint16", 0)
    credentials = tmp_path / "credentials"
    credentials.write_text("[cdse]\naws_access_key_id = OFPROFILE\naws_secret_access_key = x\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OFENVIRONMENT")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "y")
    seen: list[Any] = []
    with serve([], folder=tmp_path, answer=lambda request: seen.append(request.headers)) as (url, _):

        def asked(name: str, **settings: Any) -> dict[str, str]:
            s3 = {"endpoint": url, **settings}
            assert read(f"s3://eodata/{name}.tif", API, s3=s3)[1, 1] == 500
            return dict(seen[-1])

        assert "Credential=OFPROFILE/" in asked("a", profile="cdse")["Authorization"]
        of_environment = asked("b", requester_pays=True)
        assert "Credential=OFENVIRONMENT/" in of_environment["Authorization"]
        assert of_environment["x-amz-request-payer"] == "requester"
        assert "Authorization" not in asked("c", unsigned=True)


def test_another_store_is_asked_by_https_and_path() -> None:
    options = s3_options(StacS3Config(endpoint="https://eodata.dataspace.copernicus.eu/"))
    assert options["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"
    assert (options["AWS_HTTPS"], options["AWS_VIRTUAL_HOSTING"]) == ("YES", "FALSE")
    assert s3_options(StacS3Config()).keys() <= {"CPL_AWS_CREDENTIALS_FILE"}


class PlanetaryComputer:
    """Assets that want a signature of the present token, and the service that gives tokens."""

    def __init__(self) -> None:
        self.tokens, self.reads, self.lives_for = 0, 0, timedelta(hours=1)
        self.lock = threading.Lock()

    def __call__(self, request: Any) -> int | dict[str, Any] | None:
        url = urlsplit(request.path)
        with self.lock:
            if url.path.startswith("/token/"):
                self.tokens += 1
                expiry = datetime.now(UTC) + self.lives_for
                return {"msft:expiry": expiry.isoformat(), "token": f"sp=r&sig=token{self.tokens}"}
            if not url.path.endswith(".tif"):
                return None
            self.reads += 1
            signature = parse_qs(url.query).get("sig")
            return 409 if signature is None else None if signature == [f"token{self.tokens}"] else 403

    def expire(self) -> None:
        """Make all tokens invalid that were given, whatever they say of their time."""
        self.tokens += 1


@pytest.fixture
def signing(monkeypatch: pytest.MonkeyPatch) -> PlanetaryComputer:
    planetary_computer.sas.TOKEN_CACHE.clear()
    return PlanetaryComputer()


def test_assets_of_planetary_computer_are_signed_and_tokens_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signing: PlanetaryComputer
) -> None:
    for number in range(4):
        write(tmp_path / "sentinel2-l2" / f"{number}.tif", 500 + number, 10, "uint16", 0)
    with serve([], folder=tmp_path, answer=signing) as (url, _):
        monkeypatch.setattr(planetary_computer.sas, "BLOB_STORAGE_DOMAIN", url.removeprefix("http://"))
        monkeypatch.setattr(planetary_computer.settings.Settings.get(), "sas_url", f"{url}/token")

        def number(index: int) -> float:
            href = f"{url}/sentinel2-l2/{index}.tif"
            return float(read(href, url, sign="planetary-computer")[1, 1])

        assert (number(0), number(1), signing.tokens) == (500, 501, 1)
        signing.expire()  # in the middle of an export
        assert (number(2), signing.tokens) == (502, 3)
        planetary_computer.sas.TOKEN_CACHE.clear()
        signing.lives_for = timedelta(seconds=30)  # too short for the library to use one twice
        assert (number(3), signing.tokens) == (503, 4)
        assert (number(0), signing.tokens) == (500, 5)


def test_an_error_never_shows_a_signature(tmp_path: Path) -> None:
    with serve([], folder=tmp_path) as (url, _):
        message = refused(f"{url}/gone.tif?sp=r&sig=SECRET", url)
    assert "404" in message
    assert f"{url}/gone.tif" in message
    assert "SECRET" not in message


@pytest.mark.parametrize("status", [401, 403, 409])
def test_what_to_set_where_access_is_denied(
    status: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    with serve([], folder=tmp_path, answer=lambda _: status) as (url, _):
        message = refused(f"{url}/{status}.tif", url)
        assert "source.stac.s2.sign: planetary-computer" in message
        assert ".netrc" in message
        message = refused(f"s3://bucket/{status}.tif", API, s3={"endpoint": url})
        for setting in ("profile", "unsigned: true", "endpoint", "requester_pays"):
            assert f"source.stac.s2.s3.{setting}" in message


def test_a_file_that_is_gone_or_damaged_is_told_from_one_that_cannot_be_reached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first costs its scene, the second fails until its cause is removed."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "word")
    (tmp_path / "text.tif").write_text("no TIFF")
    with serve([], folder=tmp_path, answer=lambda r: 403 if "denied" in r.path else None) as (url, _):
        s3 = {"endpoint": url}
        dead = [("gone.tif", tmp_path / "items.json"), ("text.tif", tmp_path / "items.json")]
        for href, home in [(str(tmp_path / name), str(items)) for name, items in dead] + [
            (f"{url}/gone.tif", url),
            (f"{url}/text.tif", url),
            ("s3://bucket/gone.tif", url),
        ]:
            with pytest.raises(DeadAssetError, match=r"S2X.*(gone|text)\.tif"):
                read(href, home, s3=s3)
        for href in (f"{url}/denied.tif", "s3://bucket/denied.tif", "http://127.0.0.1:9/connect.tif"):
            with pytest.raises(InputError) as caught:
                read(href, url, s3=s3, allow_outside=True)
            assert not isinstance(caught.value, DeadAssetError)


def test_requests_are_tried_again(tmp_path: Path) -> None:
    write(tmp_path / "again.tif", 500, 10, "uint16", 0)
    answers = iter([None, 503, 429, None, 502, None])  # first the question whether it is redirected
    with serve([], folder=tmp_path, answer=lambda _: next(answers, None)) as (url, _):
        assert read(f"{url}/again.tif", url)[1, 1] == 500
    assert next(answers, "none left") == "none left"


@pytest.mark.parametrize("suffix", ["tif", "jp2"])
def test_a_file_that_breaks_off_is_read_again_and_is_not_taken_for_damaged(
    suffix: str, tmp_path: Path
) -> None:
    big = Grid(GRID.crs, GRID.x0, GRID.y0, 10, 256, 256)
    noise = np.random.default_rng(0).integers(1, 10_000, big.shape)
    failures = {"once": 1, "always": 1000}  # of requests for what follows the header
    for name in failures:
        write(tmp_path / f"{name}.{suffix}", noise, 10, "uint16", None, grid=big)

    def answer(request: Any) -> int | None:
        name = Path(request.path).stem
        header = request.headers.get("Range", "bytes=0-").startswith("bytes=0-")
        if header or failures[name] == 0:
            return None
        failures[name] -= 1
        return 404

    with serve([], folder=tmp_path, answer=answer) as (url, _):
        np.testing.assert_array_equal(read(f"{url}/once.{suffix}", url, grid=big), noise)
        assert failures["once"] == 0
        with pytest.raises(InputError) as caught:
            read(f"{url}/always.{suffix}", url, grid=big)
        assert not isinstance(caught.value, DeadAssetError)


def test_a_file_whose_data_cannot_be_decoded_is_damaged(tmp_path: Path) -> None:
    write(tmp_path / "a.tif", 500, 10, "uint16", 0, compress="deflate")
    with rasterio.open(tmp_path / "a.tif") as file:
        start = int(file.get_tag_item("BLOCK_OFFSET_0_0", "TIFF", bidx=1))
    data = bytearray((tmp_path / "a.tif").read_bytes())
    data[start + 4 : start + 12] = bytes(8)
    (tmp_path / "a.tif").write_bytes(data)
    with serve([], folder=tmp_path) as (url, _):
        for href, home in ((f"{url}/a.tif", url), (str(tmp_path / "a.tif"), str(tmp_path / "items.json"))):
            with pytest.raises(DeadAssetError, match="Decoding error"):
                read(href, home)


# --- settings -------------------------------------------------------------------------------------------


def test_assets_name_known_bands() -> None:
    StacSentinel2Config(assets={"B02": "blue_band", "SCL": "mask"})
    StacSentinel1Config(assets={"VV": "sigma0_vv"})
    for config, bad, known in ((StacSentinel2Config, "B2", "B8A"), (StacSentinel1Config, "vv", "VH")):
        with pytest.raises(ValueError, match=rf"'?{bad}'?.*{known}"):
            config(assets={bad: "x"})


def test_secrets_are_no_settings() -> None:
    with pytest.raises(ValueError, match="password or a key"):
        StacS3Config(endpoint="https://key:word@store.example")
    with pytest.raises(ValueError, match="unsigned"):
        StacS3Config(unsigned=True, profile="cdse")
    names = set(StacS3Config.model_fields)
    assert names == {"endpoint", "profile", "unsigned", "requester_pays"}
    assert Config().source.stac.s2.s3 == StacS3Config()
