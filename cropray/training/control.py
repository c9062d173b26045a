"""The actor that tells the workers of a training, wherever they are, to write their state and leave.

A module of its own, because the actor's process imports what its class lies beside: with networks and
figures it took 5 s of CPU to hold one flag.
"""

from __future__ import annotations

from typing import Any


class Control:
    """An actor that workers ask whether to write their state and leave.

    It carries nothing else: a training whose control dies goes on, and Ray starts the actor anew.
    """

    def __init__(self) -> None:
        self._leaving = False

    def leave(self) -> None:
        self._leaving = True

    def leaving(self) -> bool:
        return self._leaving


def open_control() -> Any:
    """A handle of a new `Control` on this node. Ray restarts it if it dies; it ends with this process."""
    import ray

    return ray.remote(Control).options(**beside_driver(), max_task_retries=-1).remote()


def beside_driver() -> dict[str, Any]:
    """Ray's options of an actor on this node that is restarted when it dies."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
