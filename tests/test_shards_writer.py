import re
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cropray.errors import InputError
from cropray.shards.file import shard_name, shard_uris
from cropray.shards.schema import to_table
from cropray.shards.writer import write_shard
from cropray.storage import Folder
from tests.full_disk import run_on_small_disk
from tests.samples import METADATA, make_rows, write_samples


@pytest.mark.parametrize("codec", ["none", "lz4"])
def test_the_same_samples_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    (first,) = write_samples(Folder(str(tmp_path / "a")), range(6), codec=codec)
    time.sleep(1.1)  # a time stamp to the second would show
    (second,) = write_samples(Folder(str(tmp_path / "b")), range(6), codec=codec)
    assert Path(first).read_bytes() == Path(second).read_bytes()


@pytest.mark.parametrize(("codec", "stored"), [("none", "UNCOMPRESSED"), ("lz4", "LZ4")])
def test_tensor_columns_are_flat_without_dictionary_or_statistics(
    tmp_path: Path, codec: str, stored: str
) -> None:
    (uri,) = write_samples(Folder(str(tmp_path)), range(6), codec=codec)
    parquet = pq.ParquetFile(uri)
    assert [parquet.metadata.row_group(i).num_rows for i in range(2)] == [4, 2]
    group = parquet.metadata.row_group(0)
    columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    for name in METADATA.tensors:
        assert columns[name].physical_type == "FIXED_LEN_BYTE_ARRAY"
        assert columns[name].compression == stored
        assert not columns[name].has_dictionary_page
        assert not columns[name].is_stats_set
    assert columns["labelled_fraction"].is_stats_set


def test_a_failure_while_writing_leaves_nothing(tmp_path: Path) -> None:
    def groups():
        yield to_table(make_rows([0]), METADATA)
        raise InputError("a sample is damaged")

    with pytest.raises(InputError, match="a sample is damaged"):
        write_shard(Folder(str(tmp_path)), "x.parquet", METADATA, groups(), codec="none")
    assert list(tmp_path.iterdir()) == []


FILL = """
import sys
from pathlib import Path
from cropray.storage import Folder
from cropray.shards.reader import ShardReader
from cropray.types import InputError
from tests.full_disk import run_on_small_disk
from tests.samples import write_samples

folder, count = Folder(sys.argv[1]), 0
try:
    while True:
        write_samples(folder.child(str(count)), range(24), shard_samples=24, codec="none")
        count += 1
except InputError as error:
    print(error)
there = [path for path in Path(sys.argv[1]).rglob("*") if path.is_file()]
assert count > 3 and len(there) == count, there  # and no temporary file
for path in there:
    assert len(list(ShardReader([str(path)], batch_size=24).epoch(0))[0]) == 24
there[0].unlink()
write_samples(folder.child(str(count)), range(24), shard_samples=24, codec="none")
"""


def test_a_full_disk_is_said_leaves_whole_shards_alone_and_once_there_is_room_work_goes_on(
    tmp_path: Path,
) -> None:
    said = run_on_small_disk(tmp_path / "disk", FILL)
    assert re.match(
        rf"no space is left for {tmp_path}/disk/\d+/00000\.parquet \(\d\.\d MB free in .*are kept", said
    )


FILL_TEMPORARY = """
import sys
from cropray.storage import Folder
from cropray.types import InputError
from tests.full_disk import run_on_small_disk
from tests.samples import write_samples

folder = Folder("memory://far/away")
try:
    write_samples(folder, range(400), shard_samples=400, codec="none")
except InputError as error:
    print(error)
assert folder.names() == []
"""


def test_a_full_temporary_folder_of_an_upload_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    said = run_on_small_disk(disk, FILL_TEMPORARY, {"TMPDIR": str(disk)})
    assert re.match(
        rf"no space is left for memory://far/away/00000\.parquet \(\d\.\d MB free in {disk}\)\. .*TMPDIR",
        said,
    )


def test_shards_of_a_split_are_listed_in_order(tmp_path: Path) -> None:
    folder = Folder(str(tmp_path))
    for index in (10, 2, 0):
        write_shard(folder, shard_name("val", index), METADATA, [], codec="none")
    names = [uri.removeprefix(folder.uri) for uri in shard_uris(folder, "val")]
    assert names == ["/shards/val/00000.parquet", "/shards/val/00002.parquet", "/shards/val/00010.parquet"]
    assert shard_uris(folder, "test") == []
