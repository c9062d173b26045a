"""A small local Ray for the tests that need one, and one of three nodes; both end with their tests."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    import ray

    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        object_store_memory=256 * 2**20,
    )
    yield
    ray.shutdown()


class Nodes:
    """One Ray of three nodes on this machine: the head, and two that offer `ee` and can be killed."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        # Else it takes a quarter of a minute until a lost node is noticed.
        noticed = {"health_check_period_ms": 300, "health_check_failure_threshold": 3}
        # Without a dashboard Ray still wants its port: any, beside another Ray's.
        ports = {"dashboard_port": None, "dashboard_agent_listen_port": 0}
        head = {"include_dashboard": False, **ports, "_system_config": noticed}
        self._cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, **head})
        self._offering: list[Any] = []

    @property
    def address(self) -> str:
        return str(self._cluster.address)

    @property
    def offering_ee(self) -> set[str]:
        """The ids of the nodes that do, and are alive."""
        return {node.node_id for node in self._offering}

    def make_whole(self) -> None:
        """Add the nodes that offer `ee`, or what is missing of them."""
        while len(self._offering) < 2:
            self._offering.append(self._cluster.add_node(num_cpus=1, resources={"ee": 2}))

    def kill_one(self) -> str:
        """Kill all processes of a node that offers `ee`; its id."""
        node = self._offering.pop()
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def nodes_of(self, class_name: str, *, alive: bool) -> set[str]:
        """Where actors of a class are, or where they ended; not those that never found a place."""
        table = self._cluster.global_state.actor_table(None).values()
        found = {
            actor["Address"]["NodeID"]
            for actor in table
            if actor["ActorClassName"] == class_name and (actor["State"] == "ALIVE") == alive
        }
        return {node for node in found if node.strip("f")}

    def end(self) -> None:
        self._cluster.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("integration")
