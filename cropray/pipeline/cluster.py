"""One place where a process joins or starts Ray."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from cropray.config import RayConfig

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}


@contextmanager
def ray_session(config: RayConfig) -> Iterator[None]:
    """Use the Ray that is there (a job's, or `ray.address`), else a local one ended with the block.

    Nested use joins the outer session. Never attaches to another user's Ray on the same host by
    chance: without an address a new local one is started.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS", "")
    if address:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    else:
        ray.init(
            address="local",
            num_cpus=config.num_cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    try:
        yield
    finally:
        ray.shutdown()
