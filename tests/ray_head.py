"""A Ray of its own on this machine, started as a person would (`ray start --head`) and ended by its pids."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

RAY = Path(sys.executable).with_name("ray")
_START_S = 90
_END_S = 5  # nodes that were added keep it from ending by itself
_STOP_S = 60  # until a job that is stopped is killed: it has the time that it takes
_HEAD_TYPE = "ray.head.default"  # so Ray's fake provider of nodes calls it
_FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class RayHead:
    """A running head: its Jobs API, and the environment in which commands reach it."""

    address: str
    token: str
    environment: Mapping[str, str]

    def submit(self, working_dir: Path, *entrypoint: str) -> subprocess.CompletedProcess[str]:
        """`ray job submit`, waiting for the job's end; its logs are in the output."""
        command = [
            str(RAY),
            "job",
            "submit",
            "--address",
            self.address,
            "--working-dir",
            ".",
            "--",
            *entrypoint,
        ]
        environment = self.environment
        return subprocess.run(
            command,
            check=False,
            capture_output=True,
            text=True,
            cwd=working_dir,
            env=environment,
            timeout=120,
        )

    def start(self, package: str, *entrypoint: str, **variables: str) -> str:
        """A job in a working directory that was sent before, with environment variables; its id.

        Without a package it is none of Ray's: nodes that are added on this machine share these, and take
        them from each other.
        """
        environment = {"env_vars": variables, **({"working_dir": package} if package else {})}
        body = {"entrypoint": " ".join(entrypoint), "runtime_env": environment}
        return str(self._ask("post", "/api/jobs/", json=body)["submission_id"])

    def stop(self, job: str) -> None:
        self._ask("post", f"/api/jobs/{job}/stop")

    def jobs(self) -> list[dict[str, Any]]:
        """All jobs so far, the first first."""
        listed = self._ask("get", "/api/jobs/")
        return sorted((job for job in listed if job["submission_id"]), key=lambda job: job["start_time"])

    def finished(self, job: str) -> dict[str, Any]:
        """The job when it has ended."""
        deadline = time.monotonic() + 100
        while time.monotonic() < deadline:
            info: dict[str, Any] = self._ask("get", f"/api/jobs/{job}")
            if info["status"] in _FINAL:
                return info
            time.sleep(0.2)
        raise TimeoutError(f"{job} did not end; it said: {self.logs(job)}")

    def logs(self, job: str) -> str:
        return str(self._ask("get", f"/api/jobs/{job}/logs")["logs"])

    def _ask(self, method: str, path: str, **body: Any) -> Any:
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.request(method, self.address + path, headers=headers, timeout=30, **body)
        answer.raise_for_status()
        return answer.json()


@contextmanager
def ray_head(
    *options: str, cpus: int = 2, adds: Mapping[str, float] | None = None, at_most: int = 1
) -> Iterator[RayHead]:
    """A head with a token, on free ports, with its files in a short folder of its own.

    With `adds` it is the head of a cluster to which Ray's autoscaler adds nodes with these resources where
    they are asked for, by processes on this machine.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # sockets have short names
    token = secrets.token_hex(32)
    (folder / "token").write_text(token)
    (folder / "token").chmod(0o600)
    gcs, dashboard, agent, client = _free_ports(4)
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_S),
        "OMP_NUM_THREADS": "1",
        # A job's `python` is the one that runs the tests, whether its environment is activated or not.
        "PATH": f"{RAY.parent}{os.pathsep}{os.environ['PATH']}",
    }
    if adds is not None:
        cluster = folder / "cluster.json"  # JSON is YAML
        cluster.write_text(json.dumps(_growing(cpus, adds, at_most, f"127.0.0.1:{gcs}")))
        options = (*options, f"--autoscaling-config={cluster}")
        environment |= {"RAY_FAKE_CLUSTER": "1", "RAY_NODE_TYPE_NAME": _HEAD_TYPE}
        environment |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    command = [str(RAY), "start", "--head", "--block", f"--num-cpus={cpus}", f"--temp-dir={folder / 'ray'}"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += [f"--ray-client-server-port={client}", f"--object-store-memory={256 * 2**20}", *options]
    with (folder / "head.log").open("w") as log:
        head = subprocess.Popen(
            command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    running = RayHead(f"http://127.0.0.1:{dashboard}", token, environment)
    try:
        _wait_for(running, head, folder / "head.log")
        yield running
    finally:
        _end(head)
        shutil.rmtree(folder, ignore_errors=True)


def _growing(cpus: int, adds: Mapping[str, float], at_most: int, gcs: str) -> dict[str, Any]:
    """What `ray up` would leave on a head, with Ray's provider of nodes that are processes here."""
    head = {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0}
    added = {"resources": dict(adds), "node_config": {}, "min_workers": 0, "max_workers": at_most}
    lists = ("setup", "head_setup", "worker_setup", "initialization")
    return {
        "cluster_name": "grows",
        "max_workers": at_most,
        "idle_timeout_minutes": 1,
        "upscaling_speed": 1.0,
        "provider": {"type": "fake_multinode", "gcs_address": gcs, "disable_node_updaters": True},
        "auth": {},
        "docker": {},
        "file_mounts": {},
        "file_mounts_sync_continuously": False,
        "cluster_synced_files": [],
        "rsync_exclude": [],
        "rsync_filter": [],
        "head_node_type": _HEAD_TYPE,
        "available_node_types": {_HEAD_TYPE: head, "added": added},
        **{f"{name}_commands": [] for name in lists},
        **{f"{name}_start_ray_commands": [] for name in ("head", "worker")},
    }


def _wait_for(running: RayHead, head: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and head.poll() is None:
        try:
            running.jobs()
        except requests.RequestException:
            time.sleep(0.3)
        else:
            return
    raise TimeoutError(f"Ray did not start: {log.read_text()}")


def _end(head: "subprocess.Popen[bytes]") -> None:
    """End the head, then what it left: all of it is in the head's session, whatever its group is."""
    head.terminate()
    try:
        head.wait(_END_S)
    except subprocess.TimeoutExpired:
        head.kill()
        head.wait()
    for pid in _session(head.pid):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def _session(leader: int) -> Sequence[int]:
    """Processes of a session that still run, from /proc."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            try:
                state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:  # it has ended meanwhile
                continue
            if int(session) == leader and state != "Z":
                found.append(int(folder.name))
    return found


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()
