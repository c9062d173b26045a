"""Samples a second into shuffled, normalised float batches: shards beside other ways to store samples.

    make bench   # or: .venv-peers/bin/python benchmarks/feed_peers.py [--samples N] [--repeats N] [--json]

All do the same work: the same patches of the simulated world, shuffled anew in every epoch, in batches of
16, normalised to float32 by the same function (the GeoTIFFs, which hold floats, by their own), with two
worker processes (cropray's are those of torch's DataLoader), out of the page cache. What comes out is
compared before anything is timed. Workers stay alive between epochs, and the first epoch is not timed.
cropray verifies a checksum of every sample; none of the others does. LitData and MosaicML Streaming store
samples as they are, as their guides say; zarr keeps a sample a chunk under its default codec; Ray Data reads
the shards of cropray.

The peers need packages of other versions than cropray, so this runs in an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from feed import BATCH, CODECS, _tiff_sample, make_data
from torch.utils.data import DataLoader, Dataset

from cropray.models.normalisation import SeedNormalisation
from cropray.shards.file import shard_uris
from cropray.shards.reader import ShardReader
from cropray.shards.torch_data import ShardBatches
from cropray.storage import Folder

WORKERS = 2
_SECONDS = 3.0
TARGETS = {"LitData": 1.2, "MosaicML": 1.2, "GeoTIFFs": 50.0}
"""How many times as fast as these shards must be (of the first two, as the faster one)."""

Arrays = dict[str, npt.NDArray[Any]]
Batches = Callable[[int], Iterable[Sequence[Any]]]
"""The batches (s1, s2, label) of an epoch."""


@dataclass(frozen=True)
class Stored:
    """The samples (N, …) as integers, in memory-mapped files that worker processes can open."""

    folder: Path

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        values: npt.NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return values

    def sample(self, index: int) -> Arrays:
        return {name: np.array(self[name][index]) for name in ("s1", "s2", "label")}


def collated(samples: Sequence[Arrays]) -> list[torch.Tensor]:
    """A batch of stored samples, normalised where it is put together: in the workers."""
    return normalised(
        {name: np.stack([sample[name] for sample in samples]) for name in ("s1", "s2", "label")}
    )


def normalised(batch: dict[str, Any]) -> list[torch.Tensor]:
    stored = {name: torch.as_tensor(batch[name]) for name in ("s1", "s2", "label")}
    s1, s2, _ = SeedNormalisation().apply(stored["s1"], stored["s2"])
    return [s1, s2, stored["label"]]


def shards(uris: list[str]) -> Batches:
    batches = ShardBatches(uris, batch_size=BATCH)
    loader = DataLoader(
        batches, batch_size=None, num_workers=WORKERS, persistent_workers=True, collate_fn=normalised
    )

    def epoch(number: int) -> Iterable[Sequence[Any]]:
        batches.set_epoch(number)
        return loader

    return epoch


def litdata(stored: Stored, folder: Path) -> Batches:
    from litdata import StreamingDataLoader, StreamingDataset, optimize

    count = len(stored["label"])
    optimize(stored.sample, list(range(count)), str(folder), chunk_bytes="64MB", num_workers=1)
    loader = StreamingDataLoader(
        StreamingDataset(str(folder), shuffle=True),
        batch_size=BATCH,
        num_workers=WORKERS,
        collate_fn=collated,
        persistent_workers=True,
    )
    return lambda _epoch: loader


def mosaic(stored: Stored, folder: Path) -> Batches:
    streaming = import_streaming()
    names = ("s1", "s2", "label")
    columns = {n: f"ndarray:{stored[n].dtype.name}:{','.join(map(str, stored[n].shape[1:]))}" for n in names}
    with streaming.MDSWriter(out=str(folder), columns=columns) as out:
        for index in range(len(stored["label"])):
            out.write(stored.sample(index))
    data = streaming.StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = streaming.StreamingDataLoader(
        data, batch_size=BATCH, num_workers=WORKERS, collate_fn=collated, persistent_workers=True
    )
    return lambda _epoch: loader


def import_streaming() -> types.ModuleType:
    """MosaicML Streaming; its sets of pictures, unused here, import a torchvision of the same build as
    torch, which an index of CPU builds may lack: an empty one takes its place.
    """
    import transformers.feature_extraction_utils  # noqa: F401  # which looks for the real one

    for name in ("torchvision", "torchvision.datasets", "torchvision.transforms.functional"):
        sys.modules[name] = types.ModuleType(name)
    sys.modules["torchvision.datasets"].VisionDataset = object  # type: ignore[attr-defined]  # made above
    sys.modules["torchvision.transforms.functional"].to_tensor = None  # type: ignore[attr-defined]  # likewise
    import streaming

    module: types.ModuleType = streaming
    return module


class ZarrSamples(Dataset[Arrays]):
    def __init__(self, path: str, count: int) -> None:
        self._path, self._count, self._group = path, count, None

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Arrays:
        if self._group is None:  # opened in the worker
            import zarr

            self._group = zarr.open_group(self._path, mode="r")
        return {name: self._group[name][index] for name in ("s1", "s2", "label")}


def zarr_store(stored: Stored, folder: Path) -> Batches:
    import zarr

    group = zarr.open_group(str(folder), mode="w")
    for name in ("s1", "s2", "label"):
        values = stored[name]
        group.create_array(name, data=np.asarray(values), chunks=(1, *values.shape[1:]))
    return _loader(ZarrSamples(str(folder), len(stored["label"])))


class TiffSamples(Dataset[Any]):
    def __init__(self, folder: Path) -> None:
        self._samples = sorted(folder.iterdir())

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[npt.NDArray[Any], ...]:
        return _tiff_sample(self._samples[index])


def geotiffs(folder: Path) -> Batches:
    return _loader(TiffSamples(folder), collate_fn=None)


def ray_data(uris: list[str]) -> Batches:
    import ray

    from cropray.pipeline.ray_dataset import to_ray_dataset

    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    ray.data.DataContext.get_current().enable_progress_bars = False
    data = to_ray_dataset(uris)

    def batches(epoch: int) -> Iterator[list[torch.Tensor]]:
        for batch in data.iter_batches(
            batch_size=BATCH,
            batch_format="numpy",
            local_shuffle_buffer_size=8 * BATCH,
            local_shuffle_seed=epoch,
        ):
            yield normalised({name: np.array(batch[name]) for name in ("s1", "s2", "label")})

    return batches


def _loader(data: Any, *, collate_fn: Any = collated) -> Batches:
    loader = DataLoader(
        data, BATCH, shuffle=True, num_workers=WORKERS, persistent_workers=True, collate_fn=collate_fn
    )
    return lambda _epoch: loader


def signature(batches: Iterable[Sequence[Any]]) -> npt.NDArray[np.float64]:
    """Means of s1, s2 and label of every sample, in an order that does not depend on shuffling."""
    rows = [
        np.stack(
            [np.asarray(values, np.float64).reshape(len(values), -1).mean(axis=1) for values in batch], 1
        )
        for batch in batches
    ]
    table = np.concatenate(rows)
    return table[np.lexsort(table.round(4).T)]


def measure(count: int, repeats: int, only: Sequence[str]) -> dict[str, float]:
    """Medians of samples a second. Each peer runs in a process of its own, as their workers do not bear
    each other's threads; the peers take turns.
    """
    names = [name for name in PEERS if not only or name in only]
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as place:
        folder, run = Path(place), Folder(place)
        make_data(count, run, folder / "tiffs")
        all_ = ShardReader(shard_uris(run, "none"), batch_size=1, shuffle=False).take(range(count))
        stored = {"s1": all_.s1_bcthw, "s2": all_.s2_bcthw, "label": all_.label_bhw}
        for name, values in stored.items():
            np.save(folder / f"{name}.npy", values)
        np.save(folder / "signature.npy", signature([normalised({n: v.copy() for n, v in stored.items()})]))
        for _ in range(repeats):
            for name in names:
                command = [sys.executable, __file__, "--peer", name, "--folder", place]
                answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
                taken[name].append(json.loads(answer.splitlines()[-1]))
    return {name: statistics.median(rates) for name, rates in taken.items()}


PEERS: dict[str, Callable[[Stored, Path], Batches]] = {
    **{
        f"shards, {codec}": lambda stored, _, codec=codec: shards(
            shard_uris(Folder(str(stored.folder)), codec)
        )
        for codec in CODECS
    },
    "LitData": litdata,
    "MosaicML": mosaic,
    "zarr": zarr_store,
    "Ray Data": lambda stored, _: ray_data(shard_uris(Folder(str(stored.folder)), "lz4")),
    "GeoTIFFs": lambda stored, _: geotiffs(stored.folder / "tiffs"),
}


def run_peer(name: str, folder: Path) -> float:
    """Samples a second of one peer, over epochs of three seconds at least, after one that is compared."""
    wanted = np.load(folder / "signature.npy")
    with tempfile.TemporaryDirectory() as place:
        batches = PEERS[name](Stored(folder), Path(place) / "store")
        np.testing.assert_allclose(signature(batches(0)), wanted, atol=2e-4)
        samples, start, epoch = 0, time.perf_counter(), 0
        while (seconds := time.perf_counter() - start) < _SECONDS:
            epoch += 1
            samples += sum(len(labels) for _, _, labels in batches(epoch))
    return samples / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=(), help="names of peers, as in the table")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peer:
        print(json.dumps(run_peer(args.peer, args.folder)))
        return
    rates = measure(args.samples, args.repeats, args.only)
    if args.json:
        print(
            json.dumps({"samples": args.samples, "workers": WORKERS, "batch": BATCH, "samples_per_s": rates})
        )
        return
    first = next(iter(rates))
    base = rates[first]
    print(f"{args.samples} samples, batches of {BATCH}, {WORKERS} workers; median of {args.repeats} runs\n")
    print(f"{'':16}{'samples/s':>10}   {first} are")
    for name, rate in rates.items():
        target = f"   target {TARGETS[name]:g}" if name in TARGETS else ""
        print(f"{name:16}{rate:10.0f}{base / rate:14.2f} times{target}")


if __name__ == "__main__":
    main()
