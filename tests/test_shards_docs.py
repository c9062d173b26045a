"""The specification's example reads what cropray wrote, without cropray."""

import re
from pathlib import Path

import numpy as np
import pytest

from cropray.bands import NODATA
from cropray.storage import Folder
from tests.samples import make_patch, write_samples

SPECIFICATION = Path(__file__).parents[1] / "docs" / "format.md"


@pytest.mark.parametrize("codec", ["none", "lz4", "compact"])
def test_the_example_in_the_specification_reads_every_codec(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    write_samples(Folder(str(tmp_path)), range(3), codec=codec)
    monkeypatch.chdir(tmp_path)
    (example,) = re.findall(r"```python\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    names: dict[str, np.ndarray] = {}
    exec(example, names)
    stored = make_patch(0).s2_cthw
    np.testing.assert_array_equal(names["s2"], stored)
    np.testing.assert_allclose(names["reflectance"], np.where(stored == NODATA, np.nan, stored * 1e-4))
    assert "cropray." not in example
    assert len([line for line in example.splitlines() if line]) <= 15
