"""Made tables of point series, and settings for them: two crops that differ in the near infrared."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cropray.config import Config
from cropray.config.load import updated
from cropray.run import Run
from cropray.storage import Folder

S2 = ("B02", "B03", "B04", "B05", "B06", "B07", "B08", "B11", "B12")
MONTHS = 4
CONFIG = Config.model_validate(
    {
        "classes": ["wheat", "maize"],
        "window": {"anchor": "as_of", "as_of": "2021-06-30", "months": MONTHS},
        "series": {"codes": {"wheat": [1110, "11*"], "maize": [1200]}, "block_m": 20_000},
        "rois": {"split": {"val": 0.2, "test": 0.2, "buffer_m": 1000}},
        "model": {"width": 4},
        "tracking": {"model_name": "points"},
    }
)


def long_table(samples: int = 60, *, seed: int = 0) -> pd.DataFrame:
    """One row a sample and month, January to July 2021, as ESA WorldCereal's extractions have them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(samples):
        code = (1110, 1200, 1190)[i % 3]
        lon, lat = 10 + 3 * rng.random(), 50 + 2 * rng.random()
        for month in range(1, 8):
            s2 = rng.integers(500, 2500, len(S2))
            s2[6] += 2000 * (code == 1200) * (month > 4)
            rows.append(
                {
                    "sample_id": f"field-{i:03d}",
                    "timestamp": pd.Timestamp(2021, month, 1) - pd.Timedelta(hours=1),  # in another zone
                    "lat": lat,
                    "lon": lon,
                    "h3_l3_cell": "83",
                    "CROPTYPE_LABEL": code,
                    **dict(zip((f"S2-L2A-{band}" for band in S2), s2.tolist(), strict=True)),
                    "S1-SIGMA0-VV": 4216,
                    "S1-SIGMA0-VH": 1904,
                }
            )
    return pd.DataFrame(rows)


def write(path: Path, table: pd.DataFrame) -> str:
    table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
    return str(path)


def run_in(path: Path, **settings: Any) -> Run:
    return Run(Folder(str(path)), updated(CONFIG, settings))
