"""Tables of labelled point series become shards of one pixel, or are refused with the reason."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from pyproj import Geod

from cropray.bands import NODATA
from cropray.errors import InputError
from cropray.pipeline.import_series import import_series
from cropray.report.pages import report
from cropray.rois.splits import SPLITS
from cropray.shards.file import shard_uris
from cropray.shards.inspection import verify
from cropray.shards.reader import ShardReader
from cropray.storage import Folder
from cropray.types import UNLABELLED
from tests.series_tables import MONTHS, S2, long_table, run_in, write


def reader(folder: Path, split: str) -> ShardReader:
    return ShardReader(shard_uris(Folder(str(folder)), split), batch_size=1000, shuffle=False)


def rows(folder: Path, split: str) -> dict[str, dict[str, Any]]:
    """Scalar columns and arrays of each sample."""
    data = reader(folder, split)
    batch = data.take(range(len(data.table)))
    arrays = {"s2": batch.s2_bcthw, "s1": batch.s1_bcthw, "label": batch.label_bhw}
    return {
        row["sample_id"]: row | {name: values[i] for name, values in arrays.items()}
        for i, row in enumerate(data.table.to_pylist())
    }


def test_a_sample_has_the_values_places_and_months_of_its_table(tmp_path: Path) -> None:
    table = long_table(6)
    table.loc[(table.sample_id == "field-001") & (table.timestamp.dt.month == 3), "S2-L2A-B08"] = 65535
    summary = import_series([write(tmp_path / "a.parquet", table)], run_in(tmp_path / "run"), "test")
    assert summary["samples"] == {"test": 6}
    sample = rows(tmp_path / "run", "test")["field-001"]
    mine = table[table.sample_id == "field-001"].reset_index(drop=True)
    assert [str(day) for day in sample["period_start"]] == [f"2021-0{month}-01" for month in (3, 4, 5, 6)]
    assert sample["s2"].shape == (len(S2), MONTHS, 1, 1)
    assert (sample["crop"], sample["season"], sample["province"]) == ("maize", "2021", "83")
    assert sample["label"].item() == 1
    stored = sample["s2"][:, :, 0, 0]
    for month in range(MONTHS):
        expected = [mine[f"S2-L2A-{band}"][month + 2] for band in S2]
        if month == 1:  # April, whose row begins on 31 March: one band has no value
            expected = [NODATA] * len(S2)
        assert stored[:, month].tolist() == expected
    assert sample["valid_s2"] == [1, 0, 1, 1]
    vv_db = 20 * np.log10(4216) - 83
    assert sample["s1"][0, 0, 0, 0] == round(100 * vv_db)
    assert (sample["roi_height"], sample["roi_width"], sample["resolution"]) == (1, 1, 10)
    metadata = reader(tmp_path / "run", "test").metadata
    assert (metadata.s2_bands, metadata.s1_quantity, metadata.size) == (S2, "sigma0", 1)


def test_the_longest_code_decides_and_other_codes_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = long_table(6)
    table["CROPTYPE_LABEL"] = table.sample_id.map(
        dict(zip(sorted(table.sample_id.unique()), (1110, 1190, 1200, 4100, 4100, 0), strict=True))
    )
    files = [write(tmp_path / "a.parquet", table)]
    summary = import_series(files, run_in(tmp_path / "run"), "train")
    assert summary["samples"] == {"train": 3}
    assert (summary["other_codes"], summary["unlabelled"]) == ({"4100": 2}, 1)
    assert "4100: 2 samples" in capsys.readouterr().err
    kept = import_series(files, run_in(tmp_path / "c", **{"series.keep_unlabelled": True}), "train")
    assert (kept["samples"], kept["unlabelled"]) == ({"train": 4}, 0)
    (blank,) = (row for row in rows(tmp_path / "c", "train").values() if not row["crop"])
    assert (blank["label"].item(), blank["labelled_fraction"]) == (UNLABELLED, 0)
    settings = {"series.others": "background"}
    assert import_series(files, run_in(tmp_path / "b", **settings), "train")["samples"] == {"train": 5}
    found = rows(tmp_path / "b", "train")
    assert {name: int(row["label"].item()) for name, row in found.items()} == {
        "field-000": 0,
        "field-001": 0,
        "field-002": 1,
        "field-003": 254,
        "field-004": 254,
    }
    assert found["field-003"]["crop"] == ""


def test_blocks_are_split_with_a_buffer_between_them(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.csv", long_table(200))]
    run = run_in(tmp_path / "run", **{"rois.split.buffer_m": 5000})
    summary = import_series(files, run)
    assert sum(summary["samples"].values()) + summary["left_out_in_the_buffer"] == 200
    assert summary["left_out_in_the_buffer"] > 0
    assert summary["samples"]["train"] > summary["samples"]["test"] > 10
    assert summary["samples"]["val"] > 10
    table = long_table(200).drop_duplicates("sample_id").set_index("sample_id")
    places = {s: table.loc[list(rows(tmp_path / "run", s))] for s in ("train", "val", "test")}
    geod = Geod(ellps="WGS84")
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        a, b = places[one], places[other]
        n, m = len(a), len(b)
        _, _, distance = geod.inv(
            *(np.repeat(a[k].to_numpy(), m) for k in ("lon", "lat")),
            *(np.tile(b[k].to_numpy(), n) for k in ("lon", "lat")),
        )
        assert np.min(distance) > 4900
    assert verify(str(tmp_path / "run"))["shards"] == 3
    assert import_series(files, run) == summary  # the record
    page = (tmp_path / "run" / "report.html").read_text() if report(run) else ""
    assert f"{summary['samples']['test']}" in page


def test_a_region_left_out_is_the_test_split(tmp_path: Path) -> None:
    table = long_table(200)
    table["region"] = np.where(table["lat"] > 51, "north", "south")
    files = [write(tmp_path / "a.csv", table)]
    run = run_in(tmp_path / "run", **{"rois.split.left_out": ["north"], "rois.split.buffer_m": 5000})
    summary = import_series(files, run)
    found = {s: {row["province"] for row in rows(tmp_path / "run", s).values()} for s in SPLITS}
    assert found == {"train": {"south"}, "val": {"south"}, "test": {"north"}}
    assert summary["samples"]["test"] == table.loc[table["lat"] > 51, "sample_id"].nunique()
    with pytest.raises(InputError, match=r"'nord'.*'north'"):
        import_series(files, run_in(tmp_path / "other", **{"rois.split.left_out": ["nord"]}))


def test_a_wide_table_and_columns_of_other_names_hold_the_same_samples(tmp_path: Path) -> None:
    long = long_table(3)
    import_series([write(tmp_path / "a.parquet", long)], run_in(tmp_path / "a"), "train")
    renamed = long.rename(columns={"lat": "y", "lon": "x", "CROPTYPE_LABEL": "crop", "S2-L2A-B08": "nir"})
    names = {"lat": "y", "lon": "x", "label": "crop", "B08": "nir"}
    other = run_in(tmp_path / "b", **{"series.columns": names})
    import_series([write(tmp_path / "b.csv", renamed)], other, "train")
    wide = long.drop_duplicates("sample_id")[["sample_id", "lat", "lon", "h3_l3_cell"]].copy()
    wide["ewoc_code"] = ["11-10", "12-00", "11-90"]
    wide["start_date"] = "2021-01-01"
    for band in (*S2, "VV", "VH"):
        sensor, source = ("OPTICAL", "S2-L2A") if band in S2 else ("SAR", "S1-SIGMA0")
        for t in range(7):
            values = long[long.timestamp.dt.ceil("D").dt.month == t + 1][f"{source}-{band}"].to_numpy()
            wide[f"{sensor}-{band}-ts{t}-10m"] = values
    import_series([write(tmp_path / "c.parquet", wide)], run_in(tmp_path / "c"), "train")
    first, *others = (rows(tmp_path / name, "train") for name in "abc")
    for found in others:
        assert found.keys() == first.keys()
        for name, row in first.items():
            assert all(np.array_equal(row[key], found[name][key]) for key in row)


def test_a_month_without_a_row_is_no_view_and_a_sample_without_any_is_left_out(tmp_path: Path) -> None:
    table = long_table(3)
    month = table.timestamp.dt.ceil("D").dt.month
    lost = ((table.sample_id == "field-000") & (month == 5)) | (
        (table.sample_id == "field-002") & (month > 2)
    )
    table = table[~lost]
    summary = import_series([write(tmp_path / "a.parquet", table)], run_in(tmp_path / "run"), "val")
    assert (summary["samples"], summary["without_a_view"]) == ({"val": 2}, 1)
    assert rows(tmp_path / "run", "val")["field-000"]["valid_s1"] == [1, 1, 0, 1]


def test_each_sample_has_the_months_of_its_own_year(tmp_path: Path) -> None:
    earlier = long_table(2)
    earlier["timestamp"] = earlier.timestamp.dt.ceil("D") - pd.DateOffset(years=1)
    earlier["sample_id"] += "-before"
    table = pd.concat([long_table(2), earlier])
    table["year"] = table.sample_id.str.endswith("before").map({True: 2020, False: 2021})
    import_series([write(tmp_path / "a.parquet", table)], run_in(tmp_path / "run"), "train")
    starts = {name: str(row["period_start"][0]) for name, row in rows(tmp_path / "run", "train").items()}
    assert starts["field-000"] == "2021-03-01"
    assert starts["field-000-before"] == "2020-03-01"


def _repeated(table: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table, table.iloc[:1]])


@pytest.mark.parametrize(
    ("change", "settings", "said"),
    [
        (lambda t: t.drop(columns="lat"), {}, r"no column for lat .*(?s:.*)series\.columns\.lat"),
        (_repeated, {}, r"field-000 has 2021-01 more than once"),
        (lambda t: t.assign(timestamp="soon"), {}, "'soon' is no date"),
        (lambda t: t.assign(lat=np.arange(len(t)) / 9), {}, "several values of lat"),
        (lambda t: t.assign(lat=5000.0), {}, "lat 5000.0"),
        (lambda t: t.assign(CROPTYPE_LABEL=9999), {}, r"no sample has a code (?s:.*)9999: 6 samples"),
        (lambda t: t.assign(timestamp=t.timestamp - pd.DateOffset(years=3)), {}, "2018-01 to 2018-07"),
        (lambda t: t.assign(**{"S2-L2A-B04": 30_000}), {}, r"B04 is 100\.0% outside .*series\.s2_scale"),
        (lambda t: t, {"series.s2_scale": 1e-8}, "B02 is all below 0.01"),
        (lambda t: t, {"series.s1_unit": "dB"}, r"VV .*series\.s1_unit"),
        (lambda t: t, {"series.columns": {"B08": "nir"}}, r"no column nir \(series\.columns\.B08\)"),
        (lambda t: t, {"series.codes": {"wheat": [1110]}}, "series.codes has codes of wheat"),
        (lambda t: t, {"series.codes": {"wheat": [11], "maize": [11]}}, "has 11 in maize and in wheat"),
        (lambda t: t, {"window.as_of": "2021-06-15"}, "last day"),
        (lambda t: t, {"window.anchor": "harvest"}, r"window\.anchor"),
        (lambda t: t, {"series.bands": ["B8A"]}, "no B8A"),
    ],
)
def test_a_table_that_cannot_be_used_is_refused_with_the_reason(
    tmp_path: Path, change: Any, settings: dict[str, Any], said: str
) -> None:
    files = [write(tmp_path / "a.parquet", change(long_table(6)))]
    with pytest.raises(InputError, match=said):
        import_series(files, run_in(tmp_path / "run", **settings), "train")
    assert not (tmp_path / "run").exists()


def test_a_split_without_a_sample_is_refused(tmp_path: Path) -> None:
    files = [write(tmp_path / "a.parquet", long_table(30))]
    with pytest.raises(InputError, match=r"test .*series\.block_m .*--split"):
        import_series(files, run_in(tmp_path / "run", **{"series.block_m": 1e6}))
    with pytest.raises(InputError, match="split 'tset' does not exist"):
        import_series(files, run_in(tmp_path / "run"), "tset")
    assert not (tmp_path / "run").exists()


def test_files_that_are_missing_or_no_tables_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_text("no table")
    for name, said in (("a.parquet", "a.parquet cannot be read"), ("b.csv", "b.csv")):
        with pytest.raises(InputError, match=said):
            import_series([str(tmp_path / name)], run_in(tmp_path / "run"), "train")


def test_real_series_are_read(tmp_path: Path, shared_data: Path) -> None:
    run = run_in(
        tmp_path / "corsica",
        **{
            "series.codes": {"wheat": ["2001*"], "maize": ["25*"]},
            "window.as_of": "2022-08-31",
            "window.months": 12,
        },
    )
    summary = import_series([str(shared_data / "series" / "corsica_2022_month.parquet")], run, "test")
    assert summary["samples"]["test"] + sum(summary["other_codes"].values()) == 500
    metadata = reader(tmp_path / "corsica", "test").metadata
    assert metadata.s2_bands == S2  # B8A has a column, without a value
