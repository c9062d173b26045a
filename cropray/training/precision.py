"""In what numbers a training computes: settled once at its start, and kept when it is taken up again."""

from __future__ import annotations

import re
import time
from pathlib import Path

import torch

from cropray.bands import S1_NAMES, S2_NAMES
from cropray.models.dual_unet3d import SIDE_MULTIPLE, DualUNet3D, NetworkSpec
from cropray.training.recipe import Precision
from cropray.types import InputError

_SIDE = 4 * SIDE_MULTIPLE
# What bfloat16 must be worth on a CPU to be chosen: so many times as fast as float32. Narrower networks are
# not timed: little of their time goes into products, and chance would decide.
_FASTER, _WIDTH = 1.5, 32
_CPUINFO = Path("/proc/cpuinfo")


def chosen(wanted: Precision | None, spec: NetworkSpec, device: torch.device) -> Precision:
    """The precision that was asked for; where none was (None), bfloat16 if the device gains by it.

    A GPU does where it has bfloat16 at all. A CPU must have instructions for it, and is then timed on
    a step of the network itself. Raises InputError for what the device does not have.
    """
    cuda = device.type == "cuda"
    if wanted is None:
        gains = torch.cuda.is_bf16_supported(including_emulation=False) if cuda else _cpu_gains(spec)
        return "bfloat16" if gains else "float32"
    if wanted == "tf32" and not cuda:
        raise InputError("precision: tf32 is of GPUs; the workers have none: set auto, float32 or bfloat16")
    return wanted


def apply_to_device(precision: Precision, device: torch.device) -> None:
    """Let convolutions of float32 be rounded to TF32 where that was asked for, and nowhere else."""
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cuda.matmul.allow_tf32 = False  # of the loss's sums


def has_bfloat16(cpuinfo: str) -> bool:
    """Whether the flags of a processor (Linux's /proc/cpuinfo) name instructions for bfloat16."""
    return re.search(r"\b(avx512_bf16|amx_bf16|bf16)\b", cpuinfo) is not None


def _cpu_gains(spec: NetworkSpec) -> bool:
    if spec.width < _WIDTH or not _CPUINFO.exists() or not has_bfloat16(_CPUINFO.read_text()):
        return False
    network, threads = spec.build(), torch.get_num_threads()
    torch.set_num_threads(1)  # several spend time on waiting for each other where others want the cores too
    try:
        _step_s(network, torch.float32)  # the first of all is slower
        full = _step_s(network, torch.float32)
        half = min(_step_s(network, torch.bfloat16) for _ in range(2))
    finally:
        torch.set_num_threads(threads)
    return full > _FASTER * half


def _step_s(network: DualUNet3D, kind: torch.dtype) -> float:
    """Seconds of the processor (so that other processes do not count) for a sample there and back."""
    s1, s2, valid = (
        torch.zeros(1, bands, network.months, _SIDE, _SIDE) for bands in (len(S1_NAMES), len(S2_NAMES), 2)
    )
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == torch.bfloat16):
        logits = network(s1, s2, valid)
    torch.autograd.backward(logits.float().sum())
    return time.process_time() - start
