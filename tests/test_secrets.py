"""Secrets of five kinds, planted where people put them: no file of a run and no message shows one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import planetary_computer
import pystac
import pytest

from cropray.cli import main
from cropray.config.imagery import StacCollectionConfig
from cropray.config.load import updated
from cropray.errors import InputError, format_error
from cropray.imagery.stac_access import Access
from cropray.pipeline.monitor import event_log
from cropray.progress import say
from cropray.report.pages import report
from cropray.run import Run
from cropray.tracking.registry import register_checkpoint
from cropray.tracking.runs import tracked
from tests.catalogue_items import GRID
from tests.lands import ready_run
from tests.stac_server import serve

SECRETS = {
    "mlflow": "p@ss4mlflow",
    "s3": "k3y/of+s3",
    "earth_engine": "MIIEvQpr1vate",
    "signature": "s1gn4ture%3D",
    "subscription": "subscr1ption0key",
}


def outcome(act: Callable[[], Any]) -> str:
    """The message that ends an act: of an error, or of a command."""
    with pytest.raises((SystemExit, InputError)) as ended:
        act()
    assert not isinstance(ended.value, SystemExit) or ended.value.code != 0
    return str(ended.value)


def test_no_file_of_a_run_and_no_message_shows_a_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_SECRET_ACCESS_KEY", "PC_SDK_SUBSCRIPTION_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, SECRETS["subscription"])
    run = ready_run(str(tmp_path / "run"))
    folder = run.folder.uri

    messages = []
    for uri in ("http://me:{}@127.0.0.1:1", "postgresql://me:{}@127.0.0.1:1/mlflow"):
        setting = f"tracking.uri={uri.format(SECRETS['mlflow'])}"
        messages.append(outcome(lambda: main(["models", "list", "--run", folder, "--set", setting])))  # noqa: B023
        monkeypatch.setenv("THE_PASSWORD", SECRETS["mlflow"])
        setting = f"tracking.uri={uri.format('${THE_PASSWORD}')}"
        command = ["models", "register", "--run", folder, "--set", setting, "--debug"]
        messages.append(outcome(lambda: main(command)))  # noqa: B023
    messages.append(outcome(lambda: main(["rois", "--run", f"s3://KEYID:{SECRETS['s3']}@bucket/run"])))

    key = json.dumps({"type": "service_account", "private_key": SECRETS["earth_engine"]})
    (tmp_path / "key.json").write_text(key)
    for value in (key, str(tmp_path / "key.json")):
        settings = [
            "--set",
            "source.kind=earthengine",
            "--set",
            f"source.earthengine.service_account_key={value}",
        ]
        messages.append(outcome(lambda: main(["doctor", "--run", folder, *settings])))  # noqa: B023

    with serve([], folder=tmp_path) as (home, _), event_log(run.folder, "export") as record:
        monkeypatch.setattr(planetary_computer.sas, "BLOB_STORAGE_DOMAIN", home.removeprefix("http://"))
        monkeypatch.setattr(planetary_computer.settings.Settings.get(), "sas_url", f"{home}/token")
        monkeypatch.setattr(
            planetary_computer.settings.Settings.get(), "subscription_key", SECRETS["subscription"]
        )
        for sign in ("", "planetary-computer"):
            access = Access(home, "source.stac.s2", StacCollectionConfig(sign=sign))
            item = pystac.Item("S2X", None, None, datetime(2022, 5, 4, tzinfo=UTC), {})
            asset = pystac.Asset(f"{home}/gone/B02.tif" + ("" if sign else f"?sig={SECRETS['signature']}"))
            asset.set_owner(item)
            with pytest.raises((InputError, OSError)) as ended:
                access.read(item, asset, GRID, bilinear=False, nodata=0)
            messages.append(str(ended.value))
            record(outcome="failed", error=format_error(ended.value))
        signed = f"{home}/B02.tif?st=1&sig={SECRETS['signature']}"
        record(outcome="failed", error=format_error(OSError(f"cannot read {signed}")))
        say(f"cannot read {signed}")

    with pytest.raises(InputError):
        updated(run.config, {"source.stac.catalog": f"https://host/items.json?sig={SECRETS['signature']}"})
    registered = Run(run.folder, run.config)
    with tracked(registered, "finetune"):
        pass
    register_checkpoint(registered)
    registered.claim("evaluate")
    registered.finish("evaluate", {"seconds": 1.0})
    report(registered)

    out, err = capfd.readouterr()
    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    names = {path.name for path in files}
    assert {"config.yaml", "mlflow.db", "report.html", "register.json", "stac-item.json"} <= names
    assert any(path.suffix == ".jsonl" and b"B02.tif" in path.read_bytes() for path in files)
    for secret in SECRETS.values():
        assert not [text for text in (out, err, *messages) if secret in text]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
