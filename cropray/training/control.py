"""Where the driver of a training and its workers leave word for each other: an actor of Ray."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Note:
    """How far the training is, in steps of all epochs. `loss` and `speed` are of the last steps."""

    steps: int = 0
    epoch: int = 0
    loss: float = 0.0
    samples_per_second: float = 0.0
    waiting: float = 0.0  # share of the time
    skipped: int = 0
    entries: tuple[dict[str, Any], ...] = ()  # lines of the history that are finished
    said: str = ""  # for a person
    problem: str = ""  # what the user must mend; the training cannot go on


@dataclass
class Desk:
    """The state of the actor."""

    notes: list[Note] = field(default_factory=list)
    leave: bool = False

    def tell(self, note: Note) -> None:
        self.notes.append(note)

    def heard(self) -> list[Note]:
        """What was told since the last time."""
        notes, self.notes = self.notes, []
        return notes

    def ask_to_leave(self) -> None:
        self.leave = True

    def leaving(self) -> bool:
        """Whether the workers are to keep their state and end."""
        return self.leave


def open_desk() -> Any:
    """A handle of a new desk; it ends with the driver, and is no sooner lost: it runs on the same node."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Desk).options(num_cpus=0, scheduling_strategy=here).remote()
