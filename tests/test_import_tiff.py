"""Patch folders of GeoTIFFs become parts that compaction takes as any others."""

import json
import shutil
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import numpy as np
import pytest
import rasterio

from cropray.bands import NODATA
from cropray.cli import main
from cropray.config import Config
from cropray.config.imagery import ClassMapConfig, LabelsConfig, PatchConfig
from cropray.config.rois import WindowConfig
from cropray.errors import InputError
from cropray.pipeline.compact import compact
from cropray.pipeline.import_tiff import Origin, import_tiff, mask_to_label, parse_origin
from cropray.run import Run
from cropray.shards.file import shard_uris
from cropray.shards.inspection import verify
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import BACKGROUND, UNLABELLED

pytestmark = pytest.mark.usefixtures("without_ray")

SIZE, MONTHS = 16, 2
CONFIG = Config(
    classes=("wheat", "maize"),
    window=WindowConfig(months=MONTHS),
    patch=PatchConfig(size=SIZE, max_overlap=4),
    labels=LabelsConfig(parcels=False, class_map=ClassMapConfig(path="crop_map", codes=(211, 216))),
)
ORIGIN = Origin(date(2018, 8, 1), "train")
NAMES = [f"uuid{region}_r{row:02d}_c{col:02d}" for region in "ab" for row in range(2) for col in range(2)]


def write(path: Path, values_bhw: np.ndarray, *, pages: bool = False, **profile: object) -> None:
    """A TIFF of bands or, as a writer of plain arrays makes it, of pages."""
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = values_bhw[:, None] if pages else values_bhw[None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        for number, layer in enumerate(layers):
            shape = dict(zip(("count", "height", "width"), layer.shape, strict=True))
            append = {"APPEND_SUBDATASET": "YES"} if number else {}
            with rasterio.open(
                path, "w", "GTiff", dtype=layer.dtype.name, **shape, **append, **profile
            ) as dst:
                dst.write(layer)


@dataclass
class Patches:
    """A patch folder of noise drawn from the names, and what was written."""

    folder: Path
    pages: bool = True
    s2: dict[str, np.ndarray] = field(default_factory=dict)  # T C H W
    s1: dict[str, np.ndarray] = field(default_factory=dict)
    codes: dict[str, np.ndarray] = field(default_factory=dict)

    def fill(self, names: list[str] = NAMES, **profile: object) -> "Patches":
        for number, name in enumerate(names):
            rng = np.random.default_rng(number)
            self.s2[name] = rng.uniform(0.01, 0.6, (MONTHS, 10, SIZE, SIZE)).astype(np.float32)
            self.s1[name] = rng.uniform(-24, -3, (MONTHS, 2, SIZE, SIZE))
            self.s2[name][0, :, 3, 4] = 0  # no view
            self.s1[name][1, :, 0, 0] = 0
            self.codes[name] = rng.choice([0, 100, 211, 216], (1, SIZE, SIZE)).astype(np.float64)
            for month in range(MONTHS):
                for sensor, values in (("s2", self.s2), ("s1", self.s1)):
                    path = self.folder / sensor / str(month + 1) / f"{name}.tif"
                    write(path, values[name][month], pages=self.pages, **profile)
            write(self.folder / "crop_map" / f"{name}.tif", self.codes[name], **profile)
        return self


@pytest.fixture
def patches(tmp_path: Path) -> Patches:
    return Patches(tmp_path / "england").fill()


def make_run(tmp_path: Path) -> Run:
    return Run(Folder(str(tmp_path / "run")), CONFIG)


@pytest.mark.parametrize("pages", [True, False])
def test_patches_come_out_of_shards_as_they_were(tmp_path: Path, pages: bool) -> None:
    patches = Patches(tmp_path / "england", pages).fill()
    run = make_run(tmp_path)
    assert import_tiff(str(patches.folder), run, ORIGIN)["patches"] == len(NAMES)
    assert compact(run)["samples"] == {"train": len(NAMES)}
    assert verify(str(run.folder))["samples"] == {"train": len(NAMES)}
    batch = ShardReader(shard_uris(run.folder, "train"), batch_size=99, shuffle=False).take(range(len(NAMES)))
    for i, sample in enumerate(batch.rows["sample_id"]):
        region, row, col = sample.removeprefix("england-").split("-")
        name = f"{region}_r{int(row):02d}_c{int(col):02d}"
        s2, s1 = patches.s2[name].swapaxes(0, 1), patches.s1[name].swapaxes(0, 1)
        np.testing.assert_array_equal(batch.s2_bcthw[i, 0] == NODATA, s2[0] == 0)
        np.testing.assert_array_equal(batch.s1_bcthw[i, 0] == NODATA, s1[0] == 0)
        seen = batch.s2_bcthw[i] != NODATA
        np.testing.assert_allclose((batch.s2_bcthw[i] * 1e-4)[seen], s2[seen], atol=0.51e-4)
        seen = batch.s1_bcthw[i] != NODATA
        np.testing.assert_allclose((batch.s1_bcthw[i] * 1e-2)[seen], s1[seen], atol=0.51e-2)
        wanted = np.select(
            [patches.codes[name][0] == code for code in (0, 100, 211, 216)], [UNLABELLED, BACKGROUND, 0, 1]
        )
        np.testing.assert_array_equal(batch.label_bhw[i], wanted)
        assert (batch.rows["row"][i], batch.rows["col"][i]) == (int(row) * SIZE, int(col) * SIZE)
        assert batch.rows["roi_id"][i] == f"england-{region}"
    assert [day.isoformat() for day in batch.rows["period_end"][0]] == ["2018-06-01", "2018-07-01"]


def test_an_import_that_was_stopped_goes_on_with_what_is_missing(tmp_path: Path, patches: Patches) -> None:
    run = make_run(tmp_path)
    import_tiff(str(patches.folder), run, ORIGIN)
    parts = {name: run.folder.read_bytes(f"parts/{name}") for name in run.folder.child("parts").names()}
    assert sorted(parts) == ["england-uuida-000.parquet", "england-uuidb-000.parquet"]
    run.folder.delete("parts/england-uuidb-000.parquet")
    kept = run.folder.local("parts/england-uuida-000.parquet").stat().st_mtime_ns
    import_tiff(str(patches.folder), run, ORIGIN)
    assert {name: run.folder.read_bytes(f"parts/{name}") for name in parts} == parts
    assert run.folder.local("parts/england-uuida-000.parquet").stat().st_mtime_ns == kept


def swapped_files(patches: Patches) -> Origin:
    Patches(patches.folder).fill(NAMES[::-1])  # as another folder of this name would be
    return ORIGIN


def other_split(_: Patches) -> Origin:
    return Origin(ORIGIN.harvest, "val")


def other_harvest(_: Patches) -> Origin:
    return Origin(date(2019, 8, 1), "train")


def one_more(patches: Patches) -> Origin:
    Patches(patches.folder).fill([*NAMES, "uuida_r05_c00"])
    return ORIGIN


@pytest.mark.parametrize("change", [swapped_files, other_split, other_harvest, one_more])
def test_other_patches_are_not_taken_for_those_that_are_there(
    tmp_path: Path, patches: Patches, change: Callable[[Patches], Origin]
) -> None:
    run = make_run(tmp_path)
    import_tiff(str(patches.folder), run, ORIGIN)
    before = run.folder.read_bytes("parts/england-uuida-000.parquet")
    with pytest.raises(InputError, match=r"england-uuida-000\.parquet and \d others hold other patches"):
        import_tiff(str(patches.folder), run, change(patches))
    assert run.folder.read_bytes("parts/england-uuida-000.parquet") == before


def test_other_settings_are_refused_before_a_patch_is_read(tmp_path: Path, patches: Patches) -> None:
    import_tiff(str(patches.folder), make_run(tmp_path), ORIGIN)
    Patches(tmp_path / "france").fill(NAMES[:1])
    other = Run(Folder(str(tmp_path / "run")), CONFIG.model_copy(update={"classes": ("wheat", "rice")}))
    with pytest.raises(InputError, match="other settings or from another source"):
        import_tiff(str(tmp_path / "france"), other, ORIGIN)
    assert not other.folder.exists("parts/france-uuida-000.parquet")


def test_several_folders_make_one_data_set_of_several_splits(tmp_path: Path, patches: Patches) -> None:
    Patches(tmp_path / "england_valid").fill(NAMES[:3])
    run = make_run(tmp_path)
    import_tiff(str(patches.folder), run, ORIGIN)
    summary = import_tiff(str(tmp_path / "england_valid"), run, Origin(date(2018, 9, 1), "val"))
    assert summary["patches_of_the_run"] == len(NAMES) + 3
    assert compact(run)["samples"] == {"train": len(NAMES), "val": 3}
    assert "0 of 11 samples have a place" in verify(str(run.folder))["splits"]


def test_patches_with_a_georeference_keep_their_place(tmp_path: Path) -> None:
    transform = rasterio.Affine(10, 0, 500_000, 0, -10, 4_000_000)
    patches = Patches(tmp_path / "d", pages=False).fill(NAMES[:1], crs="EPSG:32631", transform=transform)
    run = make_run(tmp_path)
    import_tiff(str(patches.folder), run, ORIGIN)
    (row,) = ShardReader([f"{run.folder}/parts/d-uuida-000.parquet"], batch_size=1).table.to_pylist()
    assert (row["crs"], row["x0"], row["y0"], row["row"]) == ("EPSG:32631", 500_000, 4_000_000, 0)


def test_masks_are_one_crop_and_otherwise_say_nothing(tmp_path: Path, patches: Patches) -> None:
    for name in NAMES:
        mask = np.linspace(0, 1, SIZE * SIZE).reshape(1, SIZE, SIZE)
        write(patches.folder / "crop_map" / f"{name}.tif", mask)
    run = make_run(tmp_path)
    import_tiff(str(patches.folder), run, Origin(date(2022, 8, 1), "train", crop="maize", country="Iran"))
    compact(run)
    batch = ShardReader(shard_uris(run.folder, "train"), batch_size=1).take([0])
    assert np.unique(batch.label_bhw, return_counts=True)[0].tolist() == [1, UNLABELLED]
    assert (batch.label_bhw == 1).sum() == SIZE * SIZE // 2
    assert batch.crop_b.tolist() == [1]


def test_masks_of_255_are_masks_too() -> None:
    assert mask_to_label(np.array([[0, 100, 200, 255]]), 3).tolist() == [[UNLABELLED, UNLABELLED, 3, 3]]


def remove_month(patches: Patches) -> None:
    shutil.rmtree(patches.folder / "s1" / "2")


def remove_sensor(patches: Patches) -> None:
    shutil.rmtree(patches.folder / "s2")


def remove_all(patches: Patches) -> None:
    shutil.rmtree(patches.folder)


def remove_file(patches: Patches) -> None:
    (patches.folder / "s2" / "2" / f"{NAMES[3]}.tif").unlink()


def other_size(patches: Patches) -> None:
    write(patches.folder / "s2" / "1" / f"{NAMES[1]}.tif", np.zeros((10, 8, 8), np.float32))


def other_bands(patches: Patches) -> None:
    write(patches.folder / "s1" / "2" / f"{NAMES[1]}.tif", np.zeros((3, SIZE, SIZE), np.float32))


def integers(patches: Patches) -> None:
    write(patches.folder / "s2" / "1" / f"{NAMES[1]}.tif", np.full((10, SIZE, SIZE), 1200, np.float32))


def linear(patches: Patches) -> None:
    for month in "12":
        write(patches.folder / "s1" / month / f"{NAMES[1]}.tif", np.full((2, SIZE, SIZE), 0.1))


def interpolated(patches: Patches) -> None:
    write(patches.folder / "crop_map" / f"{NAMES[1]}.tif", np.full((1, SIZE, SIZE), 213.5))


def cut(patches: Patches) -> None:
    path = patches.folder / "s1" / "1" / f"{NAMES[1]}.tif"
    path.write_bytes(path.read_bytes()[:200])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (remove_month, r"england/s1 has the months 1; .*folders 1 to 2"),
        (remove_sensor, r"england/s2 has no month; .*folders 1 to 2"),
        (remove_all, r"england does not exist; .*s1/, s2/ and crop_map/"),
        (remove_file, r"england/s2/2 lacks 1 of 8 patches, such as uuida_r01_c01\.tif"),
        (other_size, r"s2/1/uuida_r00_c01\.tif has .* \(10, 8, 8\); .* \(10, 16, 16\)"),
        (other_bands, r"s1/2/uuida_r00_c01\.tif has .* \(3, 16, 16\); .* \(2, 16, 16\)"),
        (integers, r"s2/\*/uuida_r00_c01\.tif holds values above 2, not reflectance"),
        (linear, r"s1/\*/uuida_r00_c01\.tif has no VH below 0; .* dB"),
        (interpolated, r"crop_map/uuida_r00_c01\.tif holds numbers that are not codes"),
        (cut, r"cannot (read|open) the raster .*s1/1/uuida_r00_c01\.tif"),
    ],
)
def test_what_is_wrong_is_named(
    tmp_path: Path, patches: Patches, spoil: Callable[[Patches], None], message: str
) -> None:
    spoil(patches)
    with pytest.raises(InputError, match=message):
        import_tiff(str(patches.folder), make_run(tmp_path), ORIGIN)


def test_labels_whose_meaning_nobody_tells(tmp_path: Path, patches: Patches) -> None:
    run = Run(Folder(str(tmp_path / "run")), Config(window=WindowConfig(months=MONTHS)))
    with pytest.raises(InputError, match=r"values of crop_map have no meaning.*class_map\.codes"):
        import_tiff(str(patches.folder), run, ORIGIN)
    with pytest.raises(InputError, match=r"crop 'rice' .*\(wheat, maize\)"):
        import_tiff(str(patches.folder), make_run(tmp_path), Origin(date(2018, 8, 1), "train", crop="rice"))


def test_a_run_with_regions_of_its_own_is_left_alone(tmp_path: Path, patches: Patches) -> None:
    run = make_run(tmp_path)
    run.finish("rois", {"rois": 3})
    with pytest.raises(InputError, match=r"regions of its own; .*--run"):
        import_tiff(str(patches.folder), run, ORIGIN)


@pytest.mark.parametrize(("harvest", "split"), [("1 August", "train"), ("2018-08-01", "all")])
def test_options_that_mean_nothing(harvest: str, split: str) -> None:
    with pytest.raises(InputError, match=r"'1 August' is not a date|split 'all' .*train, val, test"):
        parse_origin(harvest, split, "", "")


def test_the_command_line_imports(
    tmp_path: Path, patches: Patches, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(CONFIG.to_yaml())
    line = ["import-tiff", str(patches.folder), "--run", str(tmp_path / "run"), "--harvest", "2018-08-01"]
    with pytest.raises(SystemExit) as end:
        main(["shards", *line, "--config", str(config)])
    assert not end.value.code
    assert json.loads(capsys.readouterr().out)["patches"] == len(NAMES)
