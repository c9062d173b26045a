"""The record of a training on a real MLflow server, which is away for a while."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cropray.config.load import updated
from cropray.progress import Progress
from cropray.run import Run
from cropray.tracking.connection import open_client
from cropray.training.driver import pretrain
from tests.integration.test_training import history, prepared
from tests.mlflow_server import mlflow_server

pytestmark = pytest.mark.usefixtures("ray_local")
EPOCHS = 6


class Wire:
    """A door before a server that hangs up on everyone while it is `cut`."""

    def __init__(self, server: str) -> None:
        host, _, port = server.removeprefix("http://").partition(":")
        self._target = (host, int(port))
        self._door = socket.create_server(("127.0.0.1", 0))
        self.uri = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.cut, self.refused = False, 0
        threading.Thread(target=self._open, daemon=True).start()

    def close(self) -> None:
        self._door.close()

    def _open(self) -> None:
        with suppress(OSError):
            while True:
                caller, _ = self._door.accept()
                if self.cut:
                    self.refused += 1
                    caller.close()
                    continue
                there = socket.create_connection(self._target)
                for one, other in ((caller, there), (there, caller)):
                    threading.Thread(target=self._pump, args=(one, other), daemon=True).start()

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while data := one.recv(65536):
                if self.cut:
                    break
                other.sendall(data)
        for end in (one, other):  # so that the other pump ends too, and closes its own
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        one.close()


@contextmanager
def wire(server: str) -> Iterator[Wire]:
    there = Wire(server)
    yield there
    there.close()


def test_nothing_is_lost_of_the_record_while_the_server_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")  # its client's own patience is another's
    with mlflow_server(tmp_path) as server, wire(server) as line:

        class Cutting(Progress):
            def advance(self, steps: int = 1, note: str = "") -> None:
                line.cut = True  # from the first report of the workers on
                super().advance(steps, note)

        @contextmanager
        def shown(label: str, total: int) -> Iterator[Progress]:
            yield Cutting(label, total)
            line.cut = False  # when they are done

        monkeypatch.setattr("cropray.training.monitor.progress", shown)
        given = prepared(tmp_path / "a", epochs=EPOCHS)
        run = Run(given.folder, updated(given.config, {"tracking.uri": line.uri}))
        summary = pretrain(run)
        assert summary["epochs"] == EPOCHS
        assert line.refused
        assert "the MLflow server does not answer; the training continues" in capsys.readouterr().err

        client, identity = open_client(server), summary["mlflow_run"]
        recorded = client.get_metric_history(identity, "train_loss")
        assert [(m.step, m.value) for m in recorded] == [
            (entry["epoch"], entry["train_loss"]) for entry in history(run, "pretrain")
        ]
        names = client.get_run(identity).data.metrics
        assert {"val_f1/maize", "train_loss/maize", "lr", "head_lr", "system/memory_mib"} <= set(names)
        assert {"samples_per_second", "waiting_seconds", "skipped_steps"} <= set(names)
        assert client.get_run(identity).data.params["data_fingerprint"]
        files = {file.path for file in client.list_artifacts(identity)}
        assert {"config.yaml", "curves.png", "predictions"} <= files
        assert len(client.list_artifacts(identity, "predictions")) == 4
        assert client.get_run(identity).info.status == "FINISHED"
