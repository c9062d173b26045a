"""The files by which clusters are made: what tools check offline, and that they fit this package."""

import copy
import os
import re
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from cropray.cluster import growth
from cropray.config.load import load_config
from cropray.doctor import judge_resources
from tests.conftest import ROOT

CLUSTER = ROOT / "cluster.yaml"
RAYJOB = ROOT / "deploy" / "rayjob.yaml"
DOCS = ROOT / "docs" / "cluster.md"
OURS = re.compile(r"(?:jobs|configs|deploy)/[\w./-]+\.(?:py|yaml)")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return loaded


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    documents = {document["kind"]: document for document in yaml.safe_load_all(RAYJOB.read_text())}
    assert documents["ServiceAccount"]["metadata"]["name"] == "cropray"
    loaded: dict[str, Any] = documents["RayJob"]
    return loaded


def test_the_cluster_launcher_takes_the_cluster(cluster: dict[str, Any]) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(cluster))
    validate_config(prepared)
    broken = copy.deepcopy(cluster)
    broken["head_node_type"] = "none"
    with pytest.raises(ValueError, match="head_node_type"):
        validate_config(prepare_config(broken))


def test_workers_are_spot_and_the_head_is_not(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert "scheduling" not in types["head"]["node_config"]
    for name in ("export", "train"):
        assert types[name]["node_config"]["scheduling"]["provisioningModel"] == "SPOT"
        assert types[name]["min_workers"] == 0
    assert sum(types[name]["max_workers"] for name in ("export", "train")) == cluster["max_workers"]
    accounts = {node["node_config"]["serviceAccounts"][0]["email"] for node in types.values()}
    assert accounts == {"cropray@PROJECT.iam.gserviceaccount.com"}


def test_exports_have_nodes_of_their_own_and_trainings_a_gpu_each(cluster: dict[str, Any]) -> None:
    types = cluster["available_node_types"]
    assert [name for name, node in types.items() if "ee" in node["resources"]] == ["export"]
    assert [name for name, node in types.items() if "GPU" in node["resources"]] == ["train"]
    assert growth(cluster) == {"CPU": 2 + 8 * 8 + 4 * 12, "ee": 32, "GPU": 4}
    now = {"CPU": 2.0}

    def verdict(*settings: str) -> str:
        return judge_resources(now, growth(cluster), load_config(None, settings)).verdict

    assert verdict("ray.export_resources.ee=1", "pretrain.workers=4") == "warning"
    assert verdict("pretrain.workers=5") == "bad"
    assert verdict("pretrain.workers=4", "pretrain.gpus=1", "finetune.gpus=1") == "ok"
    assert verdict("pretrain.workers=5", "pretrain.gpus=1") == "bad"


def test_the_project_is_installed_by_its_constraints_and_the_token_goes_along(
    cluster: dict[str, Any],
) -> None:
    assert any("-c ~/cropray/constraints.txt ~/cropray" in line for line in cluster["setup_commands"])
    # Nodes that come later must have the head's Python, to the third number.
    assert any(re.search(r"--python 3\.11\.\d+ ", line) for line in cluster["setup_commands"])
    assert cluster["file_mounts"]["/home/ubuntu/cropray"] == "."
    assert "/home/ubuntu/.ray/auth_token" in cluster["file_mounts"]
    starts = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert all("RAY_AUTH_MODE=token" in line for line in starts if "ray start" in line)


def test_every_command_of_the_cluster_is_valid_shell(cluster: dict[str, Any]) -> None:
    lists = ("setup_commands", "head_start_ray_commands", "worker_start_ray_commands")
    for line in (line for name in lists for line in cluster[name]):
        checked = subprocess.run(["bash", "-n", "-c", line], check=False, capture_output=True, text=True)
        assert checked.returncode == 0, f"{line}\n{checked.stderr}"


def options(command: str) -> tuple[str, list[str]]:
    """The configuration and the settings of a command for a stage."""
    words = shlex.split(command)
    settings = [words[n + 1] for n, word in enumerate(words) if word == "--set"]
    return words[words.index("--config") + 1], settings


def test_the_rayjob_runs_a_stage_that_is_there(rayjob: dict[str, Any]) -> None:
    assert (rayjob["apiVersion"], rayjob["kind"]) == ("ray.io/v1", "RayJob")
    entrypoint = rayjob["spec"]["entrypoint"]
    assert shlex.split(entrypoint)[0] == "python"
    assert (ROOT / shlex.split(entrypoint)[1]).is_file()
    file, settings = options(entrypoint)
    config = load_config(ROOT / file, settings)
    assert config.ray.export_resources == {"ee": 1}
    assert rayjob["spec"]["rayClusterSpec"]["rayVersion"] == version("ray")
    assert rayjob["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}


def test_every_pod_of_the_rayjob_has_account_resources_and_volumes(rayjob: dict[str, Any]) -> None:
    spec = rayjob["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in spec["workerGroupSpecs"]}
    assert set(groups) == {"export", "train"}
    for group in (spec["headGroupSpec"], *groups.values()):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] == "cropray"
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {
            one["name"] for one in pod["volumes"]
        }
        shared = next(one for one in pod["volumes"] if one["name"] == "shared-memory")
        assert shared["emptyDir"]["medium"] == "Memory"
    for group in groups.values():
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
        assert group["template"]["spec"]["nodeSelector"]["cloud.google.com/gke-spot"] == "true"
    # Ray's start command takes the JSON with its quotes.
    resources = groups["export"]["rayStartParams"]["resources"]
    assert yaml.safe_load(yaml.safe_load(resources)) == {"ee": 4}
    train = groups["train"]["template"]["spec"]["containers"][0]
    assert train["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert train["image"].endswith(":gpu")


def test_the_image_is_made_by_the_steps_of_make() -> None:
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    targets = [line.split()[-1] for line in lines if line.startswith("FROM")]
    assert targets == ["base", "cpu", "gpu"]
    assert sum("make .venv/installed" in line for line in lines) == 2
    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    made = subprocess.run(
        ["make", "-n", "-B", ".venv/installed"], check=True, capture_output=True, text=True, cwd=ROOT
    )
    assert "-c constraints.txt" in made.stdout
    for name in ("pyproject.toml", "constraints.txt", "Makefile"):
        assert name in copied


def test_the_documentation_names_files_settings_and_lines_that_are_there(cluster: dict[str, Any]) -> None:
    text = DOCS.read_text()
    assert {name for name in OURS.findall(text) if not (ROOT / name).exists()} == set()
    for key in cluster:
        assert f"`{key}`" in text, f"{key} is not explained"
    commands = [line.strip() for line in text.replace("\\\n", " ").splitlines() if " --config " in line]
    assert commands
    for command in commands:
        file, settings = options(command.partition(" -- ")[2] or command)
        load_config(ROOT / file, settings)


def test_places_to_replace_are_the_same_everywhere() -> None:
    for path in (CLUSTER, RAYJOB):
        found = set(re.findall(r"\b(?:PROJECT|BUCKET|REGISTRY)\b", path.read_text()))
        assert {"PROJECT", "BUCKET"} <= found
    assert os.path.commonpath([CLUSTER, RAYJOB]) == str(Path(ROOT))
