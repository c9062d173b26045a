"""What Ray workers, which run in another directory, are given."""

import re
import socket
from pathlib import Path
from typing import Any

import pytest
import ray

from cropray import cluster
from cropray.cluster import check_run_folder, for_workers, growth, no_ray, ray_session
from cropray.config import Config, RayConfig
from cropray.config.load import updated
from cropray.errors import InputError


def maps(class_map: str, truth: str) -> Config:
    """A configuration that takes its labels from two maps."""
    settings = {"path": class_map, "codes": [1]}
    labels = {"class_map": settings, "truth": settings | {"path": truth}}
    return Config.model_validate({"classes": ["maize"], "labels": labels})


def test_workers_read_relative_paths_from_the_directory_of_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    given = {"source.stac.s2.items": "s2.json", "source.earthengine.service_account_key": "key.json"}
    config = updated(maps("maps/2019.tif", "../truth.tif"), given)
    there = for_workers(config)
    assert there.labels.class_map is not None
    assert there.labels.truth is not None
    assert there.labels.class_map.path == str(tmp_path / "maps/2019.tif")
    assert Path(there.labels.truth.path).resolve() == tmp_path.parent / "truth.tif"
    assert there.source.stac.s2.items == str(tmp_path / "s2.json")
    assert there.source.earthengine.service_account_key == str(tmp_path / "key.json")


@pytest.mark.parametrize(
    "path", ["/data/a.tif", "source:truth", "s3://maps/a.tif", "/vsis3/maps/a.tif", "NETCDF:/data/a.nc:ct"]
)
def test_what_does_not_depend_on_a_directory_is_left_as_it_is(path: str) -> None:
    assert for_workers(maps(path, path)) == maps(path, path)


def test_settings_that_are_not_given_stay_so() -> None:
    assert for_workers(Config()) == Config()


def test_what_exports_ask_for_is_no_resource_of_rays_own() -> None:
    assert Config.model_validate({"ray": {"export_resources": {"ee": 0.5}}}).ray.export_resources == {
        "ee": 0.5
    }
    with pytest.raises(ValueError, match=r"GPU .*custom resource"):
        Config.model_validate({"ray": {"export_resources": {"GPU": 1}}})


def test_a_cluster_grows_by_its_workers_within_both_bounds() -> None:
    types = {
        "head": {"resources": {"CPU": 4}, "max_workers": 0},
        "export": {"resources": {"CPU": 8, "ee": 10}, "max_workers": 50},
        "train": {"resources": {"CPU": 12, "GPU": 1}, "max_workers": 2},
    }
    config = {"max_workers": 10, "head_node_type": "head", "available_node_types": types}
    assert growth(config) == {"CPU": 108.0, "ee": 100.0, "GPU": 2.0}
    assert growth({}) == {}


NODE = {"Alive": True, "Labels": {"ray.io/node-id": "f00"}}
ADDED = {"Alive": True, "Labels": {"ray.io/node-id": "f00", "ray.io/node-group": "train"}}


@pytest.mark.parametrize(
    ("address", "node", "bounds", "most"),
    [
        ("", ADDED, {}, {"CPU": 4.0}),  # a Ray of one's own, which some node happens to hold
        ("auto", NODE, {}, {"CPU": 4.0}),
        ("auto", ADDED, {}, None),
        ("auto", ADDED, {"CPU": 50.0, "GPU": 2.0}, {"CPU": 50.0, "GPU": 2.0}),
        ("auto", NODE, {"CPU": 2.0, "GPU": 2.0}, {"CPU": 4.0, "GPU": 2.0}),
    ],
)
def test_what_ray_can_come_to_have_is_known_where_its_nodes_are(
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    node: dict[str, Any],
    bounds: dict[str, float],
    most: dict[str, float] | None,
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(cluster, "growth_here", lambda: bounds)
    assert cluster.reach(RayConfig(address=address)) == most


@pytest.mark.parametrize("joins", [False, True])
def test_a_ray_that_does_not_come_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch, joins: bool) -> None:
    def late(**_given: Any) -> None:
        raise Exception("The current node timed out\nof late, raylet.out says more")

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", late)
    with socket.create_server(("127.0.0.1", 0)) as server:  # something listens, but is no Ray
        address = f"127.0.0.1:{server.getsockname()[1]}" if joins else ""
        with pytest.raises(InputError) as refused, ray_session(RayConfig(address=address)):
            raise AssertionError("there is no Ray")
    facts = [address, "ray status", "RAY_ADDRESS"] if joins else ["on this machine", "doctor", "ray.address"]
    assert all(fact in str(refused.value) for fact in [*facts, "The current node timed out"])
    assert "\n" not in str(refused.value)


def test_a_token_that_is_missing_is_told_apart() -> None:
    refused = no_ray("10.0.0.1:6379", RuntimeError("Token authentication is enabled but no token"))
    assert "RAY_AUTH_TOKEN_PATH" in str(refused)


@pytest.mark.parametrize(
    ("wanted", "most", "said"),
    [
        ({"CPU": 0.25}, {}, ""),
        ({"CPU": 1, "ee": 1}, {}, ""),
        ({"CPU": 1, "GPU": 1}, {"CPU": 9, "GPU": 1}, "no node has GPU 1, .* CPU 6, GPU 0.*autoscaler"),
        ({"CPU": 1, "GPU": 1}, None, "no node has GPU 1, .*autoscaler"),
        ({"CPU": 1, "GPU": 1}, {"CPU": 9}, "no node has GPU 1, .*add a node"),
        (
            {"CPU": 4, "ee": 1},
            {"CPU": 6, "ee": 2},
            r"no node has CPU 4, ee 1, .* CPU 6, ee 2\)",
        ),  # not at once
    ],
)
def test_what_a_process_needs_must_be_on_one_node(
    monkeypatch: pytest.MonkeyPatch, wanted: dict[str, float], most: dict[str, float] | None, said: str
) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0}},
        {"Alive": True, "Resources": {"CPU": 2.0, "ee": 2.0}},
        {"Alive": False, "Resources": {"CPU": 4.0, "GPU": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    monkeypatch.setattr(cluster, "reach", lambda _: most)
    missing = cluster.missing_resources(wanted, RayConfig())
    assert bool(missing) == bool(said)
    assert re.match(said, missing)


@pytest.mark.parametrize(
    ("reference", "advice"),
    [
        ("http://host/run", "s3://bucket/run"),
        ("https://host/run?a=b", "s3://bucket/run"),
        ("s3:/bucket/run", "s3://"),
        ("gs:bucket", "gs://"),
        ("models:/cropray@champion", "./models:/cropray@champion"),
    ],
)
def test_a_run_folder_that_cannot_be_one_is_refused_by_name(reference: str, advice: str) -> None:
    with pytest.raises(InputError, match=f"--run {re.escape(reference)}.*{re.escape(advice)}"):
        check_run_folder(reference)
    for fine in (
        "run",
        "file",
        "s3",
        "s3://bucket/run",
        "./s3:/bucket/run",
        "runs/a:b",
        "file:///runs/a",
        "C:/runs",
    ):
        assert check_run_folder(fine) == fine
