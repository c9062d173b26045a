"""Processes that make batches, for local shards on Linux: Python's lock keeps threads from many cores.

A batch is made in memory that all processes share and that is used again, so nothing of it is sent.
The processes are started afresh (not forked, which is not safe beside the threads of Arrow and Ray)
and end when their parent does, however that ends.
"""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import count
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from cropray.errors import InputError
from cropray.shards.assembly import Arrays, Assembly
from cropray.shards.file import RowGroup, ShardFile

_LINE = 64  # bytes of a cache line: arrays that begin on one are a third faster to fill
_OPEN_GROUPS = 1024  # their page tables, not their tensors

Place = tuple[int, int, int]
"""A sample: number of the file, row group, row of it."""


@dataclass(frozen=True)
class _Layout:
    """Where the arrays of a batch lie in a slot of the shared memory."""

    assembly: Assembly
    batch_size: int

    @property
    def slot_bytes(self) -> int:
        return sum(self._room(name) for name in self.assembly.tensors)

    def _room(self, name: str) -> int:
        return -(-self.assembly.tensors[name].nbytes * self.batch_size // _LINE) * _LINE

    def arrays(self, slot: memoryview, samples: int) -> Arrays:
        """Arrays (samples, *shape) over one slot."""
        arrays, start = {}, 0
        whole = np.frombuffer(slot, np.uint8)
        for name, spec in self.assembly.tensors.items():
            part = whole[start : start + samples * spec.nbytes]
            arrays[name] = part.view(spec.dtype).reshape(samples, *spec.shape)
            start += self._room(name)
        return arrays


@dataclass(frozen=True)
class Ticket:
    """A batch that is being made."""

    worker: int
    slot: int
    samples: int


class Workers:
    """`processes` processes that fill batches of at most `batch_size` samples of `files`."""

    def __init__(
        self, processes: int, files: Sequence[ShardFile], assembly: Assembly, batch_size: int
    ) -> None:
        self._layout = _Layout(assembly, batch_size)
        slots = 2 * processes + 3  # being made, made, and with the consumer
        self._ahead, self._under_way = 2 * processes, 0
        memory_fd = os.memfd_create("cropray-batches")
        os.ftruncate(memory_fd, slots * self._layout.slot_bytes)
        self._memory = memoryview(mmap.mmap(memory_fd, slots * self._layout.slot_bytes))
        self._idle = list(range(slots))
        self._turns = count()
        self._connections: list[Connection] = []
        children: list[subprocess.Popen[bytes]] = []
        for _ in range(processes):
            connection, theirs = Pipe()
            children.append(_start(theirs.fileno(), memory_fd))
            theirs.close()
            connection.send((list(files), self._layout))
            self._connections.append(connection)
        os.close(memory_fd)
        self._children = children
        weakref.finalize(self, _end, self._connections, children)

    @property
    def busy(self) -> bool:
        return self._under_way > 0

    @property
    def full(self) -> bool:
        """As many batches are under way as may be."""
        return self._under_way == self._ahead or not self._idle

    def submit(self, places: Sequence[Place]) -> Ticket:
        """Have a batch of these samples made, unless `full`."""
        ticket = Ticket(next(self._turns) % len(self._connections), self._idle.pop(), len(places))
        try:
            self._connections[ticket.worker].send((ticket.slot, places))
        except OSError as error:
            raise self._died(ticket.worker) from error
        self._under_way += 1
        return ticket

    def result(self, ticket: Ticket) -> Arrays:
        """The arrays of the batch; tickets are handed in in the order in which they were given.

        Raises what the process raised, and RuntimeError where it died.
        """
        self._under_way -= 1
        try:
            error = self._connections[ticket.worker].recv()
        except (EOFError, OSError) as lost:
            raise self._died(ticket.worker) from lost
        if error is not None:
            self._idle.append(ticket.slot)
            raise error
        start = ticket.slot * self._layout.slot_bytes
        slot = self._memory[start : start + self._layout.slot_bytes]
        if len(self._idle) <= 1:  # the consumer keeps its batches: this one becomes its own
            arrays = {
                name: values.copy() for name, values in self._layout.arrays(slot, ticket.samples).items()
            }
            self._idle.append(ticket.slot)
            return arrays
        arrays = self._layout.arrays(slot, ticket.samples)
        whole = next(iter(arrays.values())).base  # the array that all arrays and their views refer to
        weakref.finalize(whole, self._idle.append, ticket.slot).atexit = False
        return arrays

    def discard(self, ticket: Ticket) -> None:
        """Wait for a batch that is not wanted any more."""
        with suppress(InputError, OSError, RuntimeError):
            self.result(ticket)

    def _died(self, worker: int) -> RuntimeError:
        code = self._children[worker].wait()
        return RuntimeError(
            f"a process that reads shards ended with exit code {code} (killed for its memory?)"
        )


def _start(connection_fd: int, memory_fd: int) -> subprocess.Popen[bytes]:
    package_root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
    return subprocess.Popen(
        [sys.executable, "-m", "cropray.shards.workers", str(connection_fd), str(memory_fd)],
        pass_fds=(connection_fd, memory_fd),
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def _end(connections: Sequence[Connection], children: Sequence[subprocess.Popen[bytes]]) -> None:
    for connection in connections:
        connection.close()
    for child in children:
        child.wait()


def _serve(connection: Connection, memory_fd: int) -> None:
    """Make batches until the parent hangs up."""
    files, layout = connection.recv()
    memory = memoryview(mmap.mmap(memory_fd, 0))
    os.close(memory_fd)

    @lru_cache(_OPEN_GROUPS)
    def row_group(file: int, group: int) -> RowGroup:
        opened: RowGroup = files[file].row_group(group)
        return opened

    while True:
        slot, places = connection.recv()
        arrays = layout.arrays(memory[slot * layout.slot_bytes : (slot + 1) * layout.slot_bytes], len(places))
        try:
            layout.assembly.fill((row_group(file, group).read(row) for file, group, row in places), arrays)
        except (InputError, OSError) as error:
            connection.send(error)
        else:
            connection.send(None)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is the parent's to end them
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        _serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
