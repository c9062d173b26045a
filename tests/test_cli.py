"""What a person meets at the command line."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from cropray.cli import main, stages
from cropray.config import Config
from cropray.config.load import load_config
from cropray.config.section import settings_of
from cropray.maps.request import plan_maps
from cropray.run import Run, Summary
from cropray.storage import Folder

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "cropray"]
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


def test_help_lists_the_stages_in_the_order_of_the_pipeline(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("--help") == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.partition("Commands:")[2].splitlines() if line]
    summaries = {name: words[-1] for name, *words in lines if name in STAGES}
    assert list(summaries) == STAGES
    assert not any(word.endswith("...") for word in summaries.values())  # they fit


def test_help_is_quick() -> None:
    """In processor time, which does not depend on what else runs."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([*COMMAND, "--help"], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


@pytest.mark.parametrize("stage", stages.STAGES)
def test_the_help_of_a_stage_names_settings_that_exist_and_an_example_that_is_valid(
    stage: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert exit_code(stage, "--help") == 0
    shown = dict(
        re.findall(r"^  (Reads|Writes|Settings|Example) +(.*)$", capsys.readouterr().out, re.MULTILINE)
    )
    assert shown.keys() == {"Reads", "Writes", "Settings", "Example"}
    known = {setting.key for setting in settings_of(Config)}
    if stage != "report":
        assert set(shown["Settings"].split(", ")) <= known
    program, name, *options = shown["Example"].split()
    assert (program, name) == ("cropray", stage)
    called: list[Run] = []
    module, function = stages.STAGES[stage]["function"].split(":")
    monkeypatch.setattr(f"{module}.{function}", lambda run, **_: called.append(run) or {})
    monkeypatch.chdir(ROOT)
    assert exit_code(stage, *["configs/own.yaml" if word == "my.yaml" else word for word in options]) == 0
    assert len(called) == 1


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("cropray fine", "finetune"),
        ("cropray shards ver", "verify"),
        ("cropray export --conf", "--config"),
        ("cropray export --set rois.eps", "rois.eps_m="),
    ],
)
def test_the_shell_completes_commands_options_and_settings(line: str, completed: str) -> None:
    asked = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_CROPRAY_COMPLETE": "complete_bash"}
    answer = subprocess.run(COMMAND, check=False, capture_output=True, text=True, env=os.environ | asked)
    assert completed in answer.stdout.split()


def run_with_a_stage_that_talks(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """`cropray …` in a process of its own, where `rois` says a line and a library of its logs another."""
    code = (
        "import logging, sys, types\n"
        "from cropray.cli import main\n"
        "from cropray.progress import progress, say\n"
        "def build_rois(run):\n"
        "    say('a line')\n"
        "    with progress('rois', 1) as bar: bar.advance()\n"
        "    logging.getLogger('library').info('a detail')\n"
        "    return {'rois': 1}\n"
        "sys.modules['cropray.rois.build'] = types.SimpleNamespace(build_rois=build_rois)\n"
        f"main({list(arguments)!r})\n"
    )
    return subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("before", "after", "shown"),
    [
        ([], [], ["a line", "rois: 1/1"]),
        (["-q"], [], []),
        ([], ["--quiet"], []),
        ([], ["-v"], ["a line", "rois: 1/1", "INFO library: a detail"]),
    ],
)
def test_quiet_shows_the_result_alone_and_verbose_the_logs_of_libraries(
    before: list[str], after: list[str], shown: list[str], tmp_path: Path
) -> None:
    said = run_with_a_stage_that_talks(*before, "rois", "--run", str(tmp_path), *after)
    assert said.stderr.splitlines() == shown
    assert json.loads(said.stdout) == {"rois": 1}


def test_quiet_shows_errors(tmp_path: Path) -> None:
    said = run_with_a_stage_that_talks("rois", "--run", str(tmp_path), "-q", "--set", "seed=-1")
    assert said.returncode == 2
    assert "seed should be greater than or equal to 0" in said.stderr


def test_the_keys_of_a_section_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("config", "keys", "rois.split") == 0
    first, *_ = lines = capsys.readouterr().out.splitlines()
    assert first == "rois.split.val  (number, ≥ 0, < 1; default 0.15)"
    assert all(line.startswith(("rois.split.", "    ")) for line in lines)
    assert exit_code("config", "keys", "window.months") == 0
    assert exit_code("config", "keys", "rois.spilt") == 2
    assert "rois.split" in capsys.readouterr().err


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


@pytest.mark.parametrize("stage", ["rois", "predict", "report"])
def test_an_empty_run_folder_is_refused(
    stage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As of a shell variable that is not set: nothing is written into this directory."""
    monkeypatch.chdir(tmp_path)
    assert exit_code(stage, "--run", "", "--set", "source.kind=simulated") == 2
    assert "--run" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_an_interrupt_is_one_message(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def interrupted(run: Run) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cropray.rois.build.build_rois", interrupted)
    assert exit_code("rois", "--run", str(tmp_path)) == 130
    assert re.fullmatch("Interrupted.* same command.*\n", capsys.readouterr().err)


def test_debug_shows_the_traceback() -> None:
    command = [*COMMAND, "config", "show", "--set", "rois.epsm=1", "--debug"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr


def test_a_traceback_shows_no_secret() -> None:
    secret = "https://host/a?sig=s3cret"
    command = [*COMMAND, "config", "show", "--set", f"source.path={secret}", "--debug"]
    shown = subprocess.run(command, check=False, capture_output=True, text=True)
    assert shown.returncode == 1
    assert "Traceback" in shown.stderr
    assert "s3cret" not in shown.stdout + shown.stderr


def test_config_show_prints_what_was_set_and_what_it_means(capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code("config", "show", "--set", "window.months=7") == 0
    assert "  # Number of months.\n  months: 7\n" in capsys.readouterr().out


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
    for command in (["models", "register"], ["models", "promote"]):
        assert exit_code(*command, "--run", str(tmp_path), "--set", "tracking.promotion_margin=0.5") == 0
    assert {(config.rois.split.buffer_m, config.source.kind) for config in seen} == {(5000, "simulated")}
    assert {(config.tracking.model_name, config.tracking.promotion_margin) for config in seen} == {("a", 0.5)}


def test_a_stage_takes_the_configuration_of_its_run_and_settings_over_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("seed: 7\nrois: {eps_m: 50, split: {named: {a: val}}}\n")
    seen: list[Config] = []

    def build_rois(run: Run) -> Summary:
        run.begin("rois")
        run.finish("rois", {})
        seen.append(run.config)
        return {}

    monkeypatch.setattr("cropray.rois.build.build_rois", build_rois)
    run = str(tmp_path / "run")
    assert exit_code("rois", "--run", run, "--config", str(file)) == 0
    assert exit_code("rois", "--run", run) == 0
    assert seen[0] == seen[1]
    assert exit_code("rois", "--run", run, "--set", "window.months=3") == 0
    assert (seen[2].rois, seen[2].window.months) == (seen[0].rois, 3)
    assert exit_code("rois", "--run", run, "--set", "rois.eps_m=60") == 2  # it was made with another
    assert exit_code("config", "show", "--run", run) == 0


def test_advice_about_another_configuration_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def build_rois(run: Run) -> Summary:
        run.begin("rois")
        run.finish("rois", {})
        return {}

    monkeypatch.setattr("cropray.rois.build.build_rois", build_rois)
    run = str(tmp_path / "run")
    assert exit_code("rois", "--run", run, "--set", "rois.eps_m=50") == 0
    (tmp_path / "other.yaml").write_text("rois: {eps_m: 60}\n")
    assert exit_code("rois", "--run", run, "--config", str(tmp_path / "other.yaml")) == 2
    assert "leave out --config" in capsys.readouterr().err
    assert exit_code("rois", "--run", run) == 0
    assert exit_code("rois", "--run", f"{run}2", "--config", str(tmp_path / "other.yaml")) == 0


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--as-of", "2022-13-01"], "--as-of"),
        (["--as-of", "2022-06-01", "--area", "4,5"], "--area"),
        (["--set", "predict.as_of=soon"], "predict.as_of"),
    ],
)
def test_a_message_names_the_option_that_was_written(
    options: list[str],
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def predict(run: Run, **_options: bool) -> Summary:
        plan_maps(run.config.predict.area, run.config, run.folder)
        return {}

    monkeypatch.setattr("cropray.pipeline.predict.predict", predict)
    assert exit_code("predict", "--run", str(tmp_path), *options) == 2
    shown = capsys.readouterr().err
    assert named in shown
    assert (named == "predict.as_of") == ("predict." in shown)


def test_a_configuration_of_a_run_that_is_none_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.yaml").write_text("season: 2022\n")
    assert exit_code("models", "list", "--run", str(tmp_path)) == 2
    assert f"{tmp_path}/config.yaml is not valid:\n  Unknown setting season" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["compact", "--run", "run", "--set", "tracking.uri=http://u:p@ss@host"],
        ["compact", "--run", "run", "--set", "tracking.uri=[http://u:p@ss@host"],
        ["compact", "--run", "run", "--set", "tracking.url=http://u:p@ss@host"],
        ["compact", "--run", "s3://u:p@ss@bucket/run"],
        ["models", "show", "models:/m@a", "--run", "s3://u:p@ss@bucket/run"],
        ["doctor", "--set", "tracking.uri=http://u:p@ss@host"],
    ],
)
def test_no_message_shows_a_password(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert exit_code(*arguments) == 2
    shown = "".join(capsys.readouterr())
    assert "error: " in shown
    assert not any(part in shown for part in ("u:p", "p@ss", "ss@"))
    assert list(tmp_path.iterdir()) == []
