"""What a person meets at the command line."""

import subprocess
import sys
from pathlib import Path

import pytest

from cropray.cli import main
from cropray.config import Config
from cropray.config.load import load_config
from cropray.run import Run, Summary
from cropray.storage import Folder

ROOT = Path(__file__).parents[1]
STAGES = ["rois", "export", "compact", "pretrain", "finetune", "evaluate", "predict", "report", "demo"]


def exit_code(*arguments: str) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        main(list(arguments))
    return exit_.value.code


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_has_a_command_and_a_job(stage: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(stage, "--help") == 0
    assert "--config" in capsys.readouterr().out
    shown = subprocess.run(
        [sys.executable, ROOT / "jobs" / f"{stage}.py", "--help"], check=False, capture_output=True, text=True
    )
    assert shown.returncode == 0
    assert f"cropray {stage}" in shown.stdout


def test_help_lists_the_stages_in_the_order_of_the_way(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    listed = [line.strip("│ ").split()[0] for line in shown.splitlines() if line.startswith("│")]
    assert [name for name in listed if name in STAGES] == STAGES


def test_a_mistake_is_one_message_and_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("config", "show", "--set", "rois.epsm=1") == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Did you mean rois.eps_m?" in shown.err
    assert "Traceback" not in shown.err


def test_a_run_folder_that_is_a_file_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").write_text("")
    assert exit_code("rois", "--run", f"{tmp_path}/run", "--set", "source.kind=simulated") == 2
    shown = capsys.readouterr().err
    assert f"{tmp_path}/run" in shown
    assert "--run folder" in shown
    assert shown.count("\n") == 1


def test_an_interrupt_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cropray.rois.build.build_rois", interrupted)
    assert exit_code("rois", "--run", str(tmp_path)) == 130
    assert capsys.readouterr().err == "interrupted; the same command goes on from what is finished\n"


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "cropray", "config", "show", "--set", "rois.epsm=1", "--debug"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_config_show_prints_what_was_set(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("config", "show", "--set", "window.months=7") == 0
    assert "months: 7" in capsys.readouterr().out


def test_commands_of_the_registry_take_the_settings_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load_config(None, ["rois.split.buffer_m=5000", "source.kind=simulated", "tracking.model_name=a"])
    Run(Folder(str(tmp_path)), made).claim("rois")
    seen: list[Config] = []

    def keep(run: Run, *_: str) -> Summary:
        seen.append(run.config)
        return {}

    monkeypatch.setattr("cropray.tracking.registry.register_checkpoint", keep)
    monkeypatch.setattr("cropray.evaluation.promotion.promote", keep)
    for command in (["register"], ["models", "promote"]):
        assert exit_code(*command, "--run", str(tmp_path), "--set", "tracking.promotion_margin=0.5") == 0
    assert {(config.rois.split.buffer_m, config.source.kind) for config in seen} == {(5000, "simulated")}
    assert {(config.tracking.model_name, config.tracking.promotion_margin) for config in seen} == {("a", 0.5)}


def test_a_configuration_of_a_run_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("season: 2022\n")
    assert exit_code("models", "list", "--run", str(tmp_path)) == 2
    assert f"{tmp_path}/config.yaml is not valid:\n  Unknown setting season" in capsys.readouterr().err
