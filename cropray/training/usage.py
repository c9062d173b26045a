"""What a stretch of training uses of its machines: processors, memory, GPU memory."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable

import torch

_MIB = 2**20

Figures = dict[str, float]


class Resources:
    """Measures from its making on, in this process."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start, self._cpu = time.perf_counter(), time.process_time()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._start

    def of_ranks(self, of_all: Callable[[Figures], list[Figures]]) -> Figures:
        """Processors that all ranks kept busy, and the highest memory (MiB) of any rank so far."""
        ranks = of_all(self._mine())
        busy = sum(rank.pop("cpus_busy") for rank in ranks)
        return {"cpus_busy": busy} | {name: max(rank[name] for rank in ranks) for name in ranks[0]}

    def _mine(self) -> Figures:
        figures = {
            "cpus_busy": (time.process_time() - self._cpu) / max(self.seconds, 1e-9),
            "memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        }
        if self._device.type == "cuda":
            figures["gpu_memory_mib"] = torch.cuda.max_memory_allocated(self._device) / _MIB
        return figures
