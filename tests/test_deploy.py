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
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
DOCS = ROOT / "docs" / "cluster.md"
WORKER = "cropray-worker@PROJECT.iam.gserviceaccount.com"
HEAD = "cropray-head@PROJECT.iam.gserviceaccount.com"
OURS = re.compile(r"(?:jobs|configs|deploy)/[\w./-]+\.(?:py|yaml)")


@pytest.fixture(scope="module")
def cluster() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(CLUSTER.read_text())
    return loaded


@pytest.fixture(scope="module")
def rayjob() -> dict[str, Any]:
    (loaded,) = (one for one in yaml.safe_load_all(RAYJOB.read_text()) if one["kind"] == "RayJob")
    job: dict[str, Any] = loaded
    return job


@pytest.fixture(scope="module")
def gpu_needs() -> tuple[str, int]:
    """CUDA of the pinned torch and the least driver branch for it, from the table in the documentation."""
    pinned = re.search(r"^torch==(\d+\.\d+)\.", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned
    rows = re.findall(r"^\| (\d+\.\d+) \| (\d+\.\d+) \| (\d+) \|$", DOCS.read_text(), re.MULTILINE)
    needs = {torch: (cuda, int(driver)) for torch, cuda, driver in rows}
    assert pinned[1] in needs, f"docs/cluster.md has no row for torch {pinned[1]}"
    return needs[pinned[1]]


def started_with(driver: str, command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The start of a GPU node whose nvidia-smi reports this driver."""
    stub = folder / "nvidia-smi"
    stub.write_text(f"#!/bin/sh\necho {driver}\n")
    stub.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", "-c", command], check=False, capture_output=True, text=True, env={"PATH": path}
    )


def test_gpu_nodes_have_a_driver_for_the_cuda_of_the_pinned_torch(
    cluster: dict[str, Any], rayjob: dict[str, Any], gpu_needs: tuple[str, int], tmp_path: Path
) -> None:
    cuda, driver = gpu_needs
    train = cluster["available_node_types"]["train"]
    image = train["node_config"]["disks"][0]["initializeParams"]["sourceImage"]
    branch = re.search(r"/family/.*-nvidia-(\d+)$", image)
    assert branch, f"{image} does not name its driver"
    assert int(branch[1]) >= driver
    assert {"key": "install-nvidia-driver", "value": "True"} in train["node_config"]["metadata"]["items"]
    (check,) = train["initialization_commands"]
    assert started_with(f"{driver}.95.05", check, tmp_path).returncode == 0
    assert started_with(f"{driver + 15}.1", check, tmp_path).returncode == 0
    old = started_with(f"{driver - 1}.99", check, tmp_path)
    assert old.returncode != 0
    assert f"{driver - 1}.99" in old.stdout
    assert str(driver) in old.stdout

    assert f'NVIDIA_REQUIRE_CUDA="cuda>={cuda}"' in DOCKERFILE.read_text()
    groups = rayjob["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    (pod,) = (group["template"]["spec"] for group in groups if group["groupName"] == "train")
    # GKE names no branch: the pods select the newest driver, and the documented node pool has it.
    assert pod["nodeSelector"]["cloud.google.com/gke-gpu-driver-version"] == "latest"
    accelerator = pod["nodeSelector"]["cloud.google.com/gke-accelerator"]
    assert f"--accelerator type={accelerator},count=1,gpu-driver-version=latest" in DOCS.read_text()


def granted(folder: Path) -> dict[str, set[tuple[str, str]]]:
    """What each account may once the documented commands have run: pairs of a role and the thing it is for.

    A stub in place of gcloud writes down how it is called, and sed edits a copy of cluster.yaml.
    """
    (block,) = (one for one in DOCS.read_text().split("```")[1::2] if "gcloud iam" in one and "sed -i" in one)
    log = folder / "calls"
    stub = folder / "gcloud"
    stub.write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {log}\n')
    stub.chmod(0o755)
    (folder / "cluster.yaml").write_text(CLUSTER.read_text())
    env = {"PATH": f"{folder}:{os.environ['PATH']}"}
    subprocess.run(["bash", "-eu", "-c", block], check=True, cwd=folder, env=env)
    roles: dict[str, set[tuple[str, str]]] = {}
    for words in map(str.split, log.read_text().splitlines()):
        if "create" in words and "service-accounts" in words:
            account = f"{words[words.index('create') + 1]}@{words[words.index('--project') + 1]}"
            roles[f"{account}.iam.gserviceaccount.com"] = set()
        elif "add-iam-policy-binding" in words:
            member = words[words.index("--member") + 1].removeprefix("serviceAccount:")
            target = words[words.index("add-iam-policy-binding") + 1]
            roles[member].add((words[words.index("--role") + 1].removeprefix("roles/"), target))
    return roles


def test_the_head_may_start_nodes_and_workers_only_read_earth_engine_and_use_the_bucket(
    cluster: dict[str, Any], tmp_path: Path
) -> None:
    roles = granted(tmp_path)
    head, worker = (name.replace("PROJECT", "MY-PROJECT") for name in (HEAD, WORKER))
    reads = {
        ("earthengine.viewer", "MY-PROJECT"),
        ("serviceusage.serviceUsageConsumer", "MY-PROJECT"),
        ("storage.objectUser", "gs://MY-BUCKET"),
    }
    starts = {("compute.instanceAdmin.v1", "MY-PROJECT"), ("iam.serviceAccountUser", worker)}
    assert roles == {worker: reads, head: reads | starts}

    edited = yaml.safe_load((tmp_path / "cluster.yaml").read_text())
    assert not re.search(r"(?<!MY-)\b(?:PROJECT|BUCKET)\b", yaml.safe_dump(edited))
    for name, node in edited["available_node_types"].items():
        (account,) = node["node_config"]["serviceAccounts"]
        assert account["email"] == (head if name == "head" else worker)
        # This wide scope is harmless only with narrow roles, which the lines above check.
        assert any(scope.endswith("/cloud-platform") for scope in account["scopes"])
        assert any(scope.endswith("/earthengine") for scope in account["scopes"])
    assert not {role for held in roles.values() for role, _ in held} & {"editor", "owner", "compute.admin"}


def test_pods_of_head_and_workers_have_accounts_of_their_own(rayjob: dict[str, Any]) -> None:
    accounts = {
        one["metadata"]["name"]: one["metadata"]["annotations"]["iam.gke.io/gcp-service-account"]
        for one in yaml.safe_load_all(RAYJOB.read_text())
        if one["kind"] == "ServiceAccount"
    }
    # No pod starts machines: in Google Cloud, both are the account with the fewest roles.
    assert accounts == {"cropray-head": WORKER, "cropray-worker": WORKER}
    spec = rayjob["spec"]["rayClusterSpec"]
    assert spec["headGroupSpec"]["template"]["spec"]["serviceAccountName"] == "cropray-head"
    workers = {group["template"]["spec"]["serviceAccountName"] for group in spec["workerGroupSpecs"]}
    assert workers == {"cropray-worker"}


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
    lines = [line for name in lists for line in cluster[name]]
    for node in cluster["available_node_types"].values():
        lines += node.get("initialization_commands", [])
    for line in lines:
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
        assert pod["securityContext"] == {"runAsNonRoot": True, "runAsUser": 1000}
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


def test_the_image_is_pinned_not_root_and_has_what_runs_only(cluster: dict[str, Any]) -> None:
    lines = DOCKERFILE.read_text().replace("\\\n", " ").splitlines()
    bases = [line.split() for line in lines if line.startswith("FROM")]
    assert [words[-1] for words in bases] == ["base", "cpu", "gpu"]
    assert [words[1] for words in bases[1:]] == ["base", "base"]
    python = re.fullmatch(r"python:(3\.\d+\.\d+)-slim-[a-z]+(@sha256:[0-9a-f]{64})?", bases[0][1])
    assert python, f"{bases[0][1]} is not pinned"
    assert any(f"--python {python[1]} " in line for line in cluster["setup_commands"])

    users = [line.split()[1] for line in lines if line.startswith("USER")]
    assert users == ["1000", "1000"]
    for target in ("cpu", "gpu"):  # the last word of each image
        stage = lines[next(n for n, line in enumerate(lines) if line.endswith(f" AS {target}")) + 1 :]
        words = [line.split()[0] for line in stage if re.match("[A-Z]+ ", line)]
        assert words[: words.index("FROM") if "FROM" in words else None][-1] == "USER"
    installs = [shlex.split(line) for line in lines if line.startswith("RUN pip install")]
    assert len(installs) == 2
    for words in installs:
        assert words[words.index("-c") + 1] == "/src/constraints.txt"
        assert words[-1] == "/src"  # no extra: not ".[dev]"
    indexes = [[word for word in words if "pytorch.org" in word] for words in installs]
    assert indexes == [["https://download.pytorch.org/whl/cpu"], []]

    copied = [word for line in lines if line.startswith("COPY") for word in line.split()[1:-1]]
    assert all((ROOT / name).exists() for name in copied)
    assert {"pyproject.toml", "constraints.txt", "cropray", "jobs", "configs"} <= set(copied)


def test_the_documentation_redirects_the_token_that_ray_prints() -> None:
    text = DOCS.read_text()
    blocks = text.split("```")[1::2]
    lines = [line for block in blocks for line in block.splitlines() if "get-auth-token" in line]
    assert lines
    assert all(line.endswith("> /dev/null") for line in lines)
    assert "prints the token" in text


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
