"""A small local Ray for the tests that need one, and one of three nodes; both end with their tests."""

from collections.abc import Iterator
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

    def add(self, **resources: float) -> None:
        """Add a node of one CPU with these resources; it stays."""
        self._cluster.add_node(num_cpus=1, resources=resources)

    def kill_one(self) -> str:
        """Kill all processes of a node that offers `ee`; its id."""
        node = self._offering.pop()
        self._cluster.remove_node(node, allow_graceful=False)
        return str(node.node_id)

    def at_work(self, resource: str) -> set[str]:
        """The nodes of whose `resource` somebody holds some."""
        total = self._cluster.global_state.total_resources_per_node()
        free = self._cluster.global_state.available_resources_per_node()
        return {
            node
            for node, resources in total.items()
            if free.get(node, {}).get(resource, 0) < resources.get(resource, 0)
        }

    def end(self) -> None:
        self._cluster.shutdown()
