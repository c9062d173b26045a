"""A training by its loop alone, without Ray: for tests, in this process or as one of several ranks.

As a program: python -m tests.training_loop FOLDER RANK WORLD_SIZE OUT [BESIDE]
"""

import shutil
import sys
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from cropray.models.checkpoint import Checkpoint
from cropray.models.dual_unet3d import NetworkSpec
from cropray.models.heads import add_head
from cropray.models.losses import LossRecipe
from cropray.models.normalisation import FixedNormalisation
from cropray.shards.file import shard_uris
from cropray.shards.order import EpochState
from cropray.storage import Folder
from cropray.training.data import Data
from cropray.training.loop import Ask, AuxiliaryTask, Loop, resume
from cropray.training.recipe import Recipe, initial_network
from cropray.training.state import EpochMetrics, StateWriter, TrainState, newest
from cropray.training.step import StepResult, Trainer
from cropray.types import Batch
from tests.training_data import CLASSES, METADATA, MONTHS

SPEC = NetworkSpec(len(CLASSES), width=4, months=MONTHS)
RECIPE = Recipe(epochs=3, lr=0.01, head_lr=0.02, loss=LossRecipe("own_crop"), ema=0.9, clip_norm=1.0, seed=3)
BATCH = 4  # samples of all ranks
LEFT_AT = 8  # a step of the second epoch
HEAD, WEIGHT = "europe", 0.4  # of a label set that is learnt beside
CHECKPOINT = Checkpoint(
    classes=CLASSES,
    network=SPEC,
    normalisation=FixedNormalisation(),
    window=METADATA.window,
    s1_quantity="gamma0",
    weights={},
)


@dataclass
class Script:
    """A supervisor that asks at certain steps (counted from 1, over all epochs) and notes what happens."""

    store_at: tuple[int, ...] = ()
    leave_at: int = 0
    asked: int = 0
    samples: list[int] = field(default_factory=list)

    def asks(self) -> int:
        self.asked += 1
        ask = Ask.CHECK_IN | (Ask.STORE if self.asked in self.store_at else Ask(0))
        return int(ask | (Ask.LEAVE if self.asked == self.leave_at else 0))

    def check_in(self, _state: TrainState, result: StepResult) -> bool:
        self.samples.append(result.samples)
        return False

    def stored(self) -> None: ...

    def epoch_done(self, _state: TrainState) -> None: ...


def make_loop(
    shards: Folder, states: Folder, supervisor: Script, recipe: Recipe = RECIPE, beside: Folder | None = None
) -> Loop:
    """From the newest state that is whole, or from the start; perhaps with shards to learn beside."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    torch.set_num_threads(1)
    torch.manual_seed(recipe.seed + rank)
    train = Data(shard_uris(shards, "train"), 0.0).reader(
        BATCH // world_size, seed=recipe.seed, rank=rank, world_size=world_size
    )
    checkpoint, auxiliary = CHECKPOINT, []
    if beside is not None:
        checkpoint = add_head(CHECKPOINT, HEAD, CLASSES)
        reader = Data(shard_uris(beside, "train"), 0.0).reader(
            BATCH // world_size, seed=recipe.seed, rank=rank, world_size=world_size
        )
        val = Data(shard_uris(beside, "val"), 0.0).part(BATCH, rank, world_size)
        auxiliary = [AuxiliaryTask(HEAD, WEIGHT, reader, val)]
    trainer = Trainer(
        initial_network(checkpoint.network, recipe.seed),
        FixedNormalisation(),
        recipe,
        len(train),
        torch.device("cpu"),
        also=[task.head for task in auxiliary],
    )
    snapshot, _ = newest(states)
    return Loop(
        trainer=trainer,
        train=train,
        val=Data(shard_uris(shards, "val"), 0.0).part(BATCH, rank, world_size),
        batch_size=BATCH // world_size,
        store_every=1,
        checkpoint=checkpoint,
        state=TrainState(EpochState(0), EpochMetrics(trainer.no_terms()))
        if snapshot is None
        else resume(snapshot, trainer),
        supervisor=supervisor,
        writer=StateWriter(states) if rank == 0 else None,
        about={},
        auxiliary=auxiliary,
    )


def halves(folder: str, rank: int, out: str) -> None:
    """Steps on the batches of one rank, each rank with its half of them."""
    trainer = trainer_for_halves()
    results = []
    for index, batch in enumerate(whole_batches(Folder(folder))):
        middle = len(batch) // 2 + 1  # the ranks' shares are not alike
        part = slice(middle) if rank == 0 else slice(middle, None)
        mine = replace(
            batch,
            s1_bcthw=batch.s1_bcthw[part],
            s2_bcthw=batch.s2_bcthw[part],
            label_bhw=batch.label_bhw[part],
            crop_b=batch.crop_b[part],
            rows={name: values[part] for name, values in batch.rows.items()},
        )
        results += trainer.step(mine, 0, index)
    if rank == 0:
        torch.save([[result.samples, result.loss, result.gradient_norm] for result in results], out)


def trainer_for_halves() -> Trainer:
    recipe = replace(RECIPE, batch_norm="frozen")
    network = initial_network(SPEC, recipe.seed)
    trainer = Trainer(network, FixedNormalisation(), recipe, 6, torch.device("cpu"), new_head=False)
    trainer.train_mode()
    return trainer


def whole_batches(shards: Folder) -> list[Batch]:
    return list(Data(shard_uris(shards, "train"), 0.0).reader(BATCH, seed=RECIPE.seed).epoch(0))


def main(folder: str, rank: str, world_size: str, out: str, beside: str = "") -> None:
    """A whole training, another that is left in its second epoch, and that one taken up.

    `left` keeps the states as they were left. With `beside`, its shards are learnt beside.
    """
    dist.init_process_group(
        "gloo", init_method=f"file://{out}/meeting", rank=int(rank), world_size=int(world_size)
    )
    halves(folder, int(rank), f"{out}/halves.pt")
    for name, leave_at in (("whole", 0), ("interrupted", LEFT_AT), ("interrupted", 0)):
        states = f"{out}/{name}"
        script = Script(leave_at=leave_at)
        other = Folder(beside) if beside else None
        loop = make_loop(Folder(folder), Folder(states), script, beside=other)
        assert loop.run() is not bool(leave_at)
        end = {**loop.trainer.state(), "random": torch.rand(3), "history": loop.state.history}
        torch.save(end, f"{out}/{name}-{rank}.pt")
        dist.barrier()
        if leave_at and rank == "0":
            shutil.copytree(states, f"{out}/left")
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
