"""Single samples of many files with where their bytes lie: all that reading them anywhere takes.

Small (a KB or two a sample), so that it can be sent to another process, which opens no footer again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cropray.shards.columns import Buffers, Column, assemble
from cropray.shards.file import ShardFile, Tensors
from cropray.shards.schema import ShardMetadata
from cropray.storage import Folder


@dataclass(frozen=True, eq=False)
class Picked:
    """N samples in their order, each of which is a row group of its file, alone."""

    metadata: ShardMetadata  # that all files share
    scalars: pa.Table  # N rows, the columns of `schema.SCALARS`
    files: tuple[tuple[Folder, str, tuple[Column, ...]], ...]  # folder, name, columns of the tensors
    places_n2: npt.NDArray[np.int64]  # number of the file, row in it
    ranges_nc2: npt.NDArray[np.int64]  # first byte and number of bytes, by sample and column

    @classmethod
    def of(cls, chosen: Sequence[tuple[ShardFile, int]]) -> Picked:
        """The samples of open files by their rows: one at least."""
        numbers: dict[str, int] = {}
        files: list[tuple[Folder, str, tuple[Column, ...]]] = []
        folders: dict[str, Folder] = {}  # one that is shared is pickled, and connects to its store, once
        columns: dict[tuple[Column, ...], tuple[Column, ...]] = {}
        for file, _ in chosen:
            if file.uri not in numbers:
                numbers[file.uri] = len(files)
                parent, _, name = file.uri.rpartition("/")
                folder = folders.setdefault(parent, Folder(parent))
                files.append((folder, name, columns.setdefault(file.columns, file.columns)))
        return cls(
            chosen[0][0].metadata,
            # Copied into one piece: slices would be pickled with all rows that they are of.
            pa.concat_tables([file.scalars.slice(row, 1) for file, row in chosen]).combine_chunks(),
            tuple(files),
            np.array([(numbers[file.uri], row) for file, row in chosen]),
            np.stack([file.ranges_gc2[row] for file, row in chosen]),
        )

    def __len__(self) -> int:
        return len(self.places_n2)

    def read(self, number: int) -> Tensors:
        """The tensors of one sample: one range of bytes, verified, as by `RowGroup.read`."""
        place, row = self.places_n2[number].tolist()
        folder, name, columns = self.files[place]
        scalars, ranges = self.scalars.slice(number, 1), self.ranges_nc2[number : number + 1]
        uri = f"{folder.uri}/{name}"
        file = ShardFile(uri, self.metadata, scalars, {}, (1,), columns, ranges, first_row=row)
        return file.load_row_group(0, folder.filesystem, folder.path(name)).read(0)

    def row_groups(self, size: int) -> Iterator[pa.Table]:
        """Tables of `size` samples; once nobody refers to one, the next takes its memory."""
        buffers = Buffers()
        for first in range(0, len(self), size):
            scalars = self.scalars.slice(first, size)
            tensors = (self.read(first + number) for number in range(len(scalars)))
            yield assemble(scalars, tensors, self.metadata, buffers.empty)
