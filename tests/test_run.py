"""A run folder belongs to one configuration, and remembers its stages."""

from pathlib import Path

import pytest

from cropray.overrides import load_config
from cropray.run import Run
from cropray.storage import Folder
from cropray.types import InputError


def open_run(path: Path, *settings: str) -> Run:
    return Run(Folder(str(path)), load_config(None, settings))


def test_a_finished_stage_is_reused(tmp_path: Path) -> None:
    assert open_run(tmp_path).begin("rois") is None
    open_run(tmp_path).claim("rois")
    assert open_run(tmp_path).begin("rois") is None  # claimed, not finished
    open_run(tmp_path).finish("rois", {"rois": 3})
    assert open_run(tmp_path).begin("rois") == {"rois": 3}
    assert open_run(tmp_path).summary("rois") == {"rois": 3}
    assert load_config(tmp_path / "config.yaml") == load_config(None)


def test_another_configuration_is_refused_by_key(tmp_path: Path) -> None:
    open_run(tmp_path).claim("rois")
    with pytest.raises(InputError, match=r"rois\.eps_m: 2000\.0 there, 5\.0 now") as caught:
        open_run(tmp_path, "rois.eps_m=5").begin("rois")
    assert "another --run folder" in str(caught.value)


def test_a_setting_of_an_earlier_stage_is_checked_too(tmp_path: Path) -> None:
    open_run(tmp_path).finish("rois", {})
    with pytest.raises(InputError, match=r"rois\.eps_m"):
        open_run(tmp_path, "rois.eps_m=5").begin("export")


def test_a_setting_of_a_later_stage_may_change(tmp_path: Path) -> None:
    open_run(tmp_path).finish("rois", {"rois": 1})
    assert open_run(tmp_path, "finetune.lr=0.5").begin("rois") == {"rois": 1}


def test_a_stage_without_the_one_before_it_says_which(tmp_path: Path) -> None:
    open_run(tmp_path).claim("rois")
    with pytest.raises(InputError, match="export needs rois first"):
        open_run(tmp_path).begin("export")


def test_a_stage_that_stopped_at_its_inputs_leaves_its_settings_free(tmp_path: Path) -> None:
    open_run(tmp_path, "rois.table=absent.csv").begin("rois")
    assert not list(tmp_path.iterdir())
    assert open_run(tmp_path, "rois.table=right.csv").begin("rois") is None


def test_the_kept_configuration_has_each_stage_as_it_was_run(tmp_path: Path) -> None:
    for stage in ("rois", "export", "compact"):
        open_run(tmp_path).finish(stage, {})
    open_run(tmp_path, "finetune.epochs=5").finish("finetune", {})
    open_run(tmp_path, "evaluate.bootstrap=7").finish("evaluate", {})
    kept = load_config(tmp_path / "config.yaml")
    assert (kept.finetune.epochs, kept.evaluate.bootstrap) == (5, 7)
