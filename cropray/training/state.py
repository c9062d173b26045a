"""State of a training as tensors that stand still: copied out of it, and put back into an optimizer."""

from __future__ import annotations

import io
import json
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from torch import Tensor
from torch.optim import Optimizer

from cropray.errors import InputError
from cropray.models.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from cropray.storage import Folder


def copied(state: Any) -> Any:
    """A copy on the CPU of nested dicts, lists and tensors: later steps do not change it."""
    if isinstance(state, Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        return {key: copied(value) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return [copied(value) for value in state]
    return state


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Take up an optimizer's state, its tensors laid out in memory as their parameters are.

    A fused optimizer goes through parameter, gradient and moments by their places in memory.
    """
    optimizer.load_state_dict(state)
    for parameter, moments in optimizer.state.items():
        for name, x in moments.items():
            if torch.is_tensor(x) and x.shape == parameter.shape:
                moments[name] = torch.empty_like(parameter).copy_(x).detach()


STATE = "state.pt"
STANDING = "standing.json"
_WHOLE = "whole.json"
_KEPT = 2  # the newest, beside that of the best epoch


@dataclass(frozen=True)
class Kept:
    """A state as it is kept: where the training stands (JSON), and the tensors of its trainer."""

    name: str
    standing: dict[str, Any]
    state: dict[str, Any]


def name_of(epoch: int, step: int = 0) -> str:
    """The folder of a state: of `epoch` (1-based) finished, or of so many steps in it."""
    return f"epoch-{epoch:04d}-step-{step:07d}" if step else f"epoch-{epoch:04d}"


def _age(name: str) -> tuple[int, float]:
    """Sorts the names of states by the progress of the training."""
    _, epoch, *step = name.split("-")
    return int(epoch), int(step[1]) if step else float("inf")


def read(folder: Folder, name: str) -> Kept | None:
    """The state of a name, None where it is not whole."""
    return _read(folder.child(name), name)


def newest(folder: Folder) -> tuple[Kept | None, list[str]]:
    """The most advanced state that is whole, and the names of more advanced ones that are not."""
    damaged = list[str]()
    for name in sorted(_states(folder), key=_age, reverse=True):
        kept = read(folder, name)
        if kept is not None:
            return kept, damaged
        damaged.append(name)
    return None, damaged


class StateWriter:
    """Writes states one after another in a thread of its own.

    What goes wrong there is raised by the next call of any method.
    """

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._pool = ThreadPoolExecutor(1, "state-writer")
        self._last: Future[None] | None = None

    @property
    def busy(self) -> bool:
        """Whether a state is still being written."""
        return self._last is not None and not self._last.done()

    def put(self, kept: Kept, checkpoint: Checkpoint | None, best: str | None) -> None:
        """Write a state, with a checkpoint to publish if given; of older ones `best` and few more stay.

        Waits for the one before. The caller does not touch the state any more.
        """
        self.wait()
        self._last = self._pool.submit(self._write, kept, checkpoint, best)

    def check(self) -> None:
        """Raises what went wrong so far."""
        if self._last is not None and self._last.done():
            self._last.result()

    def wait(self) -> None:
        """Until everything is written."""
        if self._last is not None:
            self._last.result()

    def _write(self, kept: Kept, checkpoint: Checkpoint | None, best: str | None) -> None:
        try:
            _publish(self._folder.child(kept.name), kept, checkpoint)
        except OSError:
            # A full disk has room again for what others write; the states before are whole.
            with suppress(OSError):
                self._folder.delete_folder(kept.name)
            raise
        _tidy(self._folder, kept.name, best)


def _publish(target: Folder, kept: Kept, checkpoint: Checkpoint | None) -> None:
    if target.exists(_WHOLE):
        target.delete(_WHOLE)  # of the same state before an interruption: it is not whole for now
    buffer = io.BytesIO()
    torch.save(kept.state, buffer)
    files = {STATE: buffer.getvalue(), STANDING: json.dumps(kept.standing).encode()}
    for name, data in files.items():
        target.write_bytes(name, data)
    if checkpoint is not None:
        save_checkpoint(checkpoint, target)
    sums = {name: [len(data), xxhash.xxh3_64_hexdigest(data)] for name, data in files.items()}
    target.write_text(_WHOLE, json.dumps(sums, indent=1) + "\n")


def _tidy(folder: Folder, written: str, best: str | None) -> None:
    """Delete all states but the newest, that of the best epoch, and any that is further on."""
    until = [name for name in sorted(_states(folder), key=_age) if _age(name) <= _age(written)]
    whole = [name for name in until if folder.exists(f"{name}/{_WHOLE}")]
    for name in until:
        if name not in {*whole[-_KEPT:], best}:
            folder.delete_folder(name)


def _states(folder: Folder) -> set[str]:
    return {name.split("/")[0] for name in folder.names() if name.startswith("epoch-") and "/" in name}


def _read(folder: Folder, name: str) -> Kept | None:
    try:
        sums = json.loads(folder.read_text(_WHOLE))
        data = {file: folder.read_bytes(file) for file in (STATE, STANDING)}
    except (InputError, ValueError):  # a file is not there, or no JSON
        return None
    if any([len(data[file]), xxhash.xxh3_64_hexdigest(data[file])] != sums.get(file) for file in data):
        return None
    if name == name_of(_age(name)[0]):  # of a whole epoch: with a checkpoint, checked by its own sum
        try:
            load_checkpoint(folder)
        except InputError:
            return None
    state = torch.load(io.BytesIO(data[STATE]), map_location="cpu", weights_only=True)
    return Kept(name, json.loads(data[STANDING]), state)
