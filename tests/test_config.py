"""The configuration: strict keys, dotted overrides, readable errors."""

import re
from pathlib import Path

import pytest
import yaml

from cropray.config import Config
from cropray.config.load import REMOVED, load_config, parse_config, updated
from cropray.config.section import Setting, commented_yaml, settings_of
from cropray.config.training import RECIPES, TrainConfig
from cropray.errors import InputError

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("setting", "nearest"),
    [
        ("roi=1", "rois"),
        ("rois.epsm=1", "rois.eps_m"),
        ("rois.split.vall=0.1", "rois.split.val"),
        ("rois.parcels=[{crop: a, paths: b}]", "rois.parcels.0.path"),
        ("finetune.learning_rate=0.1", "finetune.lr"),  # by its description
        ("tune.space={finetune.lr: {lognormal: [1, 2]}}", "tune.space.finetune.lr.loguniform"),
        ("months=7", "window.months"),  # by its name elsewhere
    ],
)
def test_an_unknown_setting_names_the_nearest(setting: str, nearest: str) -> None:
    with pytest.raises(InputError, match=re.escape(f"Did you mean {nearest}?")) as caught:
        load_config(None, [setting])
    assert f"Unknown setting {setting.partition('=')[0]}" in str(caught.value)


def test_an_unknown_setting_like_no_other_names_those_there_are() -> None:
    with pytest.raises(InputError, match=r"Known: crs, resolution, snap\."):
        load_config(None, ["grid.zzzzzz=1"])


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("finetune: {learning_rate: 0.1, lr: -1}\nlabels: {truth: {path: t.tif}}\n")
    with pytest.raises(InputError) as caught:
        load_config(path, ["source.kind=landsat", "window.anchor=as_of"])
    heading, *problems = str(caught.value).splitlines()
    assert str(path) in heading
    assert {re.findall(r"[a-z]+\.[a-z_.]*[a-z]", line)[0] for line in problems} == {
        *("finetune.learning_rate", "finetune.lr", "labels.truth.codes", "source.kind", "window.anchor")
    }
    with pytest.raises(InputError) as caught:
        load_config(None, ["no-equals", "a.b=[1"])
    assert [line.split(":")[0] for line in str(caught.value).splitlines()[1:]] == [
        *("  --set no-equals", "  --set a.b=[1")
    ]
    with pytest.raises(InputError) as caught:
        load_config(None, ["no-equals", "window.months=0", "classes=[a, a]"])
    assert [name in str(caught.value) for name in ("no-equals", "window.months")] == [True, True]
    with pytest.raises(InputError) as caught:
        load_config(None, ["classes=[a, a]", "labels.truth={path: t.tif, codes: [1]}"])
    assert len(str(caught.value).splitlines()) == 3


def test_a_removed_setting_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(REMOVED, "grid.warp", "the grid never warps. Delete it")
    with pytest.raises(InputError, match=r"grid\.warp was removed: the grid never warps\. Delete it\."):
        load_config(None, ["grid.warp=1"])
    # The records of an older run stay readable.
    assert parse_config(b"grid: {warp: 1, snap: 40}", "config.yaml").grid.snap == 40


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_processes_that_read_shards_are_refused_as_removed(stage: str) -> None:
    with pytest.raises(InputError, match=rf"{stage}\.processes was removed: one process feeds"):
        load_config(None, [f"{stage}.processes=2"])
    assert parse_config(f"{stage}: {{processes: 0}}".encode(), "config.yaml") == Config()


def test_every_setting_has_a_description_a_type_and_a_default_that_is_valid() -> None:
    settings = {setting.key: setting for setting in settings_of(Config)}
    assert len(settings) > 150
    for key, setting in settings.items():
        assert setting.description.endswith("."), key
        assert setting.type, key
    assert settings["window.months"] == Setting(
        "window.months", "integer, ≥ 1, ≤ 24", "6", "Number of months."
    )
    assert settings["source.kind"].type == "simulated | stac | earthengine"
    assert settings["rois.parcels.N.path"].default == ""  # required
    assert settings["ray.export_resources"].type == "{name: number, > 0}"
    simple = {
        key: one.default
        for key, one in settings.items()
        if one.default and not {"N", "NAME"} & {*key.split(".")}
    }
    for section in ("labels.class_map", "labels.land_cover", "labels.truth"):
        del simple[f"{section}.nodata"]
    assert load_config(None, [f"{key}={value}" for key, value in simple.items()]) == Config()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_a_commented_configuration_reads_back_as_itself(path: Path) -> None:
    config = load_config(path)
    text = commented_yaml(config)
    assert Config.model_validate(yaml.safe_load(text)) == config
    assert f"  # Number of months.\n  months: {config.window.months}\n" in text


@pytest.mark.parametrize(
    "setting",
    [
        "window.months=soon",
        "window.anchor=as_of",
        "grid.resolution=-1",
        "grid.snap=15",
        "source.kind=landsat",
        "seed=-1",  # no generator takes it
        "patch.max_overlap=64",
        "composite.s1_passes=[]",
        "classes=[pea, maize, pea]",
        f"classes=[{','.join(f'c{n}' for n in range(255))}]",  # 254 and 255 are no classes
        "predict.as_of=2022-13-01",
    ],
)
def test_a_wrong_value_is_an_error_that_names_its_key(setting: str) -> None:
    with pytest.raises(InputError, match=re.split("[.=]", setting)[0]):
        load_config(None, [setting])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("window.anchor=as_of", "window.as_of is not set"),
        ("classes=wheat", "classes should be a list, [a, b], got 'wheat'"),
        ("rois=3", "rois should hold settings, key: value, got 3"),
        ("rois.parcels=[{crop: a}]", "rois.parcels.0.path is required"),
        ("finetune.lr=-1", "finetune.lr should be greater than 0, got -1"),
        ("finetune.workers=[3, 1]", "min 3 is above max 1"),
    ],
)
def test_an_error_uses_the_words_of_the_configuration(setting: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(None, [setting])
    (problem,) = str(caught.value).splitlines()[1:]
    assert message in problem


def test_a_snap_of_whole_pixels_is_one_whatever_the_rounding() -> None:
    assert load_config(None, ["grid.snap=0.3", "grid.resolution=0.1"]).grid.snap == 0.3


@pytest.mark.parametrize("setting", ["no-equals", "=1", "a.b=[1"])
def test_a_malformed_override_is_an_error(setting: str) -> None:
    with pytest.raises(InputError, match="--set"):
        load_config(None, [setting])


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nwindow: {months: 4}\n")
    config = load_config(path, ["window.months=5", "rois.eps_m=10"])
    assert (config.seed, config.window.months, config.rois.eps_m) == (3, 5, 10)


def test_an_entry_of_a_list_is_set_by_its_number(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rois: {parcels: [{crop: a, path: a.shp}, {crop: b, path: b.shp}]}")
    parcels = load_config(path, ["rois.parcels.1.path=c.shp"]).rois.parcels
    assert [entry.path for entry in parcels] == ["a.shp", "c.shp"]
    for setting in ("rois.parcels.2.path=c.shp", "rois.parcels.path=c.shp"):
        with pytest.raises(InputError, match=r"no entry (2|path); its entries are 0 to 1"):
            load_config(path, [setting])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "predict: {as_of: 2022-02-30}"])
def test_a_file_that_is_no_mapping_is_an_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        load_config(path)


def test_nothing_after_the_equals_sign_is_an_empty_text() -> None:
    base = load_config(None, ["tracking.uri=http://a", "finetune.threshold=0.3"])
    assert load_config(None, ["tracking.uri="], base=base).tracking.uri == ""
    assert load_config(None, ["finetune.threshold=null"], base=base).finetune.threshold is None


def test_a_missing_file_is_an_error() -> None:
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        load_config("nowhere.yaml")


def test_the_resolved_configuration_reads_back_as_itself() -> None:
    config = load_config(None, ["window.anchor=as_of", "window.as_of=2022-06-10", "classes=[maize, pea]"])
    assert Config.model_validate(yaml.safe_load(config.to_yaml())) == config


def test_as_many_codes_as_classes() -> None:
    with pytest.raises(InputError, match="3 codes for 2 classes"):
        load_config(None, ["classes=[a, b]", "labels.truth={path: t.tif, codes: [1, 2, 3]}"])


def test_updated_checks_its_overrides() -> None:
    config = updated(load_config(None), {"rois.kind": "table", "labels.class_map": None})
    assert config.rois.kind == "table"
    with pytest.raises(InputError, match="Did you mean"):
        updated(config, {"rois.knd": "table"})


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.name)
def test_the_configurations_of_the_repository_are_valid(path: Path) -> None:
    config = load_config(path)
    updated(config, config.demo.pretraining)
    assert config.classes


def test_a_file_that_is_no_text_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"config\.yaml is not valid YAML"):
        load_config(tmp_path / "config.yaml")


def test_settings_come_over_a_base_and_a_file_takes_its_place(tmp_path: Path) -> None:
    base = load_config(
        None, ["rois.split.buffer_m=5000", "rois.split.named={a: val}", "tracking.uri=http://a"]
    )
    found = load_config(None, ["rois.split.val=0.2"], base=base)
    assert (found.rois.split.buffer_m, found.rois.split.val, found.tracking.uri) == (5000, 0.2, "http://a")
    assert found.rois.split.named == {"a": "val"}
    assert load_config(None, base=base) == base
    (tmp_path / "mine.yaml").write_text("rois: {split: {val: 0.2}}\n")
    found = load_config(tmp_path / "mine.yaml", base=base)
    assert (found.rois.split.buffer_m, found.rois.split.val, found.tracking.uri) == (1000, 0.2, "")


def test_another_recipe_over_what_a_run_wrote_brings_its_values() -> None:
    """A run writes every setting; those of its recipe are not the user's own."""
    written = load_config(None, ["finetune.recipe=seed", "finetune.epochs=7", "labels.truth=null"]).to_yaml()
    base = parse_config(written.encode(), "config.yaml")
    assert base == load_config(None, ["finetune.recipe=seed", "finetune.epochs=7"])
    again = load_config(None, ["finetune.recipe=modern"], base=base)
    assert again == load_config(None, ["finetune.recipe=modern", "finetune.epochs=7"])


@pytest.mark.parametrize(("code", "read"), [("0110", "72"), ("12:30", "750")])
def test_a_number_that_yaml_reads_otherwise_is_refused(tmp_path: Path, code: str, read: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(f"rois:\n  parcels:\n    - path: a\n      crops: {{column: c, map: {{{code}: wheat}}}}\n")
    with pytest.raises(InputError, match=rf"line 4: {code} is read as {read}; write '{code}' in quotes"):
        load_config(path)
    path.write_text(path.read_text().replace(code, f"'{code}'"))
    (entry,) = load_config(path).rois.parcels
    assert entry.crops is not None
    assert entry.crops.map == {code: "wheat"}


@pytest.mark.parametrize(
    ("text", "key", "line"),
    [
        ("seed: 1\nclasses: [a]\nseed: 2\n", "seed", 3),
        ("window:\n  months: 5\n  lead_months: 1\n  months: 4\n", "months", 4),
        ("tune: {space: {finetune.lr: {choice: [1]},\n  'finetune.lr': {choice: [2]}}}\n", "finetune.lr", 2),
    ],
)
def test_a_key_that_stands_twice_is_refused_with_its_line(
    tmp_path: Path, text: str, key: str, line: int
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"mine\.yaml is not valid YAML: line {line}: .*'{key}' .*twice"):
        load_config(path)
    with pytest.raises(InputError, match=r"--set grid.*'snap' occurs twice"):
        load_config(None, ["grid={snap: 20, snap: 40}"])


def test_keys_that_a_merge_brings_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("pretrain: &a {epochs: 3, lr: 0.1}\nfinetune: {<<: *a, lr: 0.2}\n")
    config = load_config(path)
    assert (config.finetune.epochs, config.finetune.lr, config.pretrain.lr) == (3, 0.2, 0.1)


@pytest.mark.parametrize("map_", ["class_map", "truth", "land_cover"])
@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("path: a.tif, codes: [0, 1]", "path: a.tif, codes: [0, 1], nodata: 255"),
        ("path: a.tif, codes: [3, 3]", "path: a.tif, codes: [3, 4]"),
        ("path: source:a, codes: [1, 2], nodata: 5", "path: source:a, codes: [1, 2]"),
    ],
)
def test_a_code_of_a_map_means_one_thing(map_: str, wrong: str, right: str) -> None:
    with pytest.raises(InputError, match=rf"labels\.{map_}: "):
        load_config(None, ["classes=[a, b]", f"labels.{map_}={{{wrong}}}"])
    load_config(None, ["classes=[a, b]", f"labels.{map_}={{{right}}}"])


@pytest.mark.parametrize("key", ["predict.name", "tune.name"])
@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../a", "a\\b", "-x", ".hidden", "a b", "a\n"])
def test_a_name_that_could_leave_its_folder_is_refused(key: str, name: str) -> None:
    with pytest.raises(InputError, match=f"{key}: .*cannot name a file"):
        updated(Config(), {key: name})
    assert updated(Config(), {key: "juin_2022-05.v2"})
    assert updated(Config(), {key: "n" * 100})
    with pytest.raises(InputError, match=f"{key}: 'nnn.*shorter name"):
        updated(Config(), {key: "n" * 101})


def test_a_recipe_gives_what_is_not_given() -> None:
    config = load_config(None, ["finetune.recipe=seed", "pretrain.recipe=seed", "finetune.epochs=7"])
    assert (config.pretrain.epochs, config.finetune.epochs) == (11, 7)
    assert (config.finetune.lr, config.finetune.head_lr) == (1e-5, 1e-4)
    assert (config.finetune.unlabelled, config.finetune.threshold) == ("negative", 0.35)
    assert config.pretrain.threshold is None


def test_a_copy_with_another_recipe_follows_that_one() -> None:
    config = updated(Config(), {"finetune.recipe": "seed", "finetune.epochs": 7})
    again = updated(config, {"finetune.recipe": "modern", "seed": 3})
    direct = load_config(None, ["finetune.recipe=modern", "finetune.epochs=7", "seed=3"])
    assert again == direct
    assert again.finetune.optimizer == "adamw"
    assert updated(config, {"finetune.recipe": None}).finetune == TrainConfig(epochs=7)
    assert Config(finetune=TrainConfig(recipe="seed", epochs=7)) == config


def test_the_resolved_values_of_a_recipe_stay_when_read_back() -> None:
    config = load_config(None, ["finetune.recipe=seed"])
    shown = yaml.safe_load(config.to_yaml())
    assert shown["finetune"]["lr"] == 1e-5
    assert Config.model_validate(shown) == config


@pytest.mark.parametrize("name", sorted(RECIPES))
@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_the_values_of_every_recipe_are_settings(name: str, stage: str) -> None:
    settings = getattr(load_config(None, [f"{stage}.recipe={name}"]), stage)
    for key, value in RECIPES[name][stage].items():
        assert getattr(settings, key) == value


def test_an_unknown_recipe_is_refused_with_those_there_are() -> None:
    with pytest.raises(InputError, match=r"finetune\.recipe .*'seed' or 'modern'.* got 'old'"):
        load_config(None, ["finetune.recipe=old"])


@pytest.mark.parametrize("key", ["tracking.uri", "finetune.init", "predict.model", "predict.area"])
@pytest.mark.parametrize("uri", ["http://u:p@ss@host", "s3://KEY:sl/ash@bucket/x"])
def test_no_setting_takes_a_password(key: str, uri: str) -> None:
    with pytest.raises(InputError, match=rf"{key}: .*AWS_SECRET_ACCESS_KEY") as error:
        load_config(None, [f"{key}={uri}"])
    assert not any(part in str(error.value) for part in ("p@ss", "ss@", "sl/ash", "KEY:"))


def test_a_variable_in_place_of_a_password_is_kept_as_its_name() -> None:
    uri = "postgresql://u:${MLFLOW_PASSWORD}@host/db"
    config = load_config(None, [f"tracking.uri={uri}"])
    assert parse_config(config.to_yaml().encode(), "config.yaml").tracking.uri == uri


@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
@pytest.mark.parametrize("key", ["finetune.lr", "rois.eps_m", "tune.budget_s", "rois.split.buffer_m"])
def test_a_number_that_is_not_finite_is_refused(key: str, value: str) -> None:
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        load_config(None, [f"{key}={value}"])


def test_a_stac_source_of_one_sensor_reads_that_one() -> None:
    def sensors(*overrides: str) -> tuple[str, ...]:
        return load_config(None, ["source.kind=stac", *overrides]).composite.sensors

    assert sensors("source.stac.s2.items=a.json") == ("s2",)
    assert sensors("source.stac.s1.api=https://a.org", "source.stac.s1.collection=b") == ("s1",)
    assert sensors("source.stac.s2.items=a.json", "source.stac.s1.items=b.json") == ("s2", "s1")
    assert sensors("source.stac.s2.items=a.json", "source.kind=simulated") == ("s2", "s1")
    with pytest.raises(InputError, match=r"composite\.sensors is s1, but source\.stac has s2 alone"):
        sensors("source.stac.s2.items=a.json", "composite.sensors=[s1]")
