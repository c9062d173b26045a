"""The scalar columns of a batch, made Python values where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa


class Rows(Mapping[str, list[Any]]):
    """Rows of a table by column, one value a row, in their order.

    All columns of a batch take longer to convert than a tenth of its tensors to read, and few are wanted.
    """

    def __init__(self, table: pa.Table, positions: npt.NDArray[np.int64]) -> None:
        self._table, self._positions = table, positions
        self._converted: dict[str, list[Any]] = {}

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._converted:
            self._converted[name] = self._table[name].take(pa.array(self._positions)).to_pylist()
        return self._converted[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return int(self._table.num_columns)

    def __reduce__(self) -> tuple[Any, ...]:  # without the other rows of the table
        return dict, (list(self.items()),)
