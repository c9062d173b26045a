"""A run: a folder, its configuration, and a record of each stage that started or finished."""

from __future__ import annotations

import json
import posixpath
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, get_args

from cropray.config import Config, ReportConfig
from cropray.config.imagery import EarthEngineConfig, SourceConfig, StacS3Config
from cropray.config.load import REMOVED, parse_config
from cropray.config.training import OPERATIONAL
from cropray.errors import InputError, listed
from cropray.progress import say
from cropray.storage import Folder

Summary = dict[str, Any]
"""The result of a stage as JSON. The user sees it, and the record of the stage keeps it."""

Inputs = Mapping[str, str]
"""Fingerprints, by name, of the files, shards and weights on which a stage depends."""

_NO_INPUTS: Final[Inputs] = {}

# Settings in the sections below that may change: they affect no result, or their content is among the inputs.
_FREE = (
    REMOVED.keys()
    | {f"predict.{name}" for name in ("batch_size", "model")}
    | {f"predict.{name}" for name in ("fields", "fields_layer", "field_id", "declared")}
    | {f"report.{name}" for name in ReportConfig.model_fields}
    | {"evaluate.model", "source.ingestion_days", "source.max_lost"}
    | {f"tune.{name}" for name in ("trials", "concurrent", "cpus", "budget_s", "evaluate")}
    | {f"source.earthengine.{name}" for name in EarthEngineConfig.model_fields if name != "eucropmap_year"}
    | {f"source.stac.{sensor}.{name}" for sensor in ("s2", "s1") for name in ("sign", "allow_outside")}
    | {f"source.stac.{sensor}.s3.{name}" for sensor in ("s2", "s1") for name in StacS3Config.model_fields}
    | {f"{stage}.{name}" for stage in ("pretrain", "finetune") for name in OPERATIONAL}
)
_KINDS = get_args(SourceConfig.model_fields["kind"].annotation)
_DATA = ("rois", "export", "compact")
_EARLIER: dict[str, tuple[str, ...]] = {
    "rois": (),
    "export": _DATA[:1],
    "compact": _DATA[:2],
    "predict": (),
    **dict.fromkeys(("pretrain", "finetune", "tune", "evaluate"), _DATA),
}
_CONFIG = "config.yaml"
_FROM_RUN = "run:"
_REMEDY = {
    "predict": "Give this map another name: --set predict.name=…",
    "tune": "Give this sweep another name: --set tune.name=…",
}


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration.

    Layout: config.yaml, stages/, world/, rois/, parts/, events/, ledger.parquet, shards/<split>/,
    checkpoints/<stage>/, models/<stage>/, tune/<name>/, mlflow/, evaluation/, maps/<name>/, areas/<name>/,
    report.html.
    """

    folder: Folder
    config: Config

    def begin(self, stage: str) -> None:
        """Check that a stage can start in this folder.

        Raises InputError if an earlier stage is not finished, or if this stage or an earlier one ran
        here with a different configuration.
        """
        for earlier in _EARLIER[stage]:
            record = self._record(earlier)
            if record is None or record["summary"] is None:
                raise InputError(
                    f"{stage} needs {earlier} first. Run cropray {earlier} --run {self.folder} …"
                )
            self._check(earlier, record)
        record = self._record(stage)
        if record is not None:
            self._check(stage, record)

    def finished(self, stage: str, inputs: Inputs = _NO_INPUTS, files: Sequence[str] = ()) -> Summary | None:
        """The summary of a stage that finished earlier with the same inputs and still has its `files`."""
        summary, changed = self.summary(stage), self.changed(stage, inputs)
        if summary is None:
            return None
        gone = [name for name in files if not self.folder.exists(name)]
        if not changed and not gone:
            return summary
        reason = f"{', '.join(changed)} changed since it was finished" if changed else f"{gone[0]} is missing"
        say(f"{stage}: runs again: {reason}")
        return None

    def changed(self, stage: str, inputs: Inputs) -> list[str]:
        """Names of the inputs that differ from those of the last attempt. Empty before the first one."""
        was = inputs if self._record(stage) is None else self.inputs(stage)
        return sorted(name for name, value in inputs.items() if was.get(name) != value)

    def inputs(self, stage: str) -> Inputs:
        """The inputs of the last attempt. Empty before the first one."""
        inputs: Inputs = (self._record(stage) or {}).get("inputs", {})
        return inputs

    def claim(self, stage: str, inputs: Inputs = _NO_INPUTS) -> None:
        """Reserve the folder for this configuration of a stage.

        A stage calls this after it has checked its inputs and before it writes its first file. Until
        then a user can correct mistakes in the settings.
        """
        self._write(stage, None, inputs)

    def finish(self, stage: str, summary: Summary, inputs: Inputs = _NO_INPUTS) -> None:
        self._write(stage, summary, inputs)

    def summary(self, stage: str) -> Summary | None:
        """The summary of a finished stage, else None."""
        record = self._record(stage)
        return None if record is None else record["summary"]

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """Settings as JSON, by section, of the last attempt of a stage and of the stages before it.

        None before the first attempt.
        """
        *earlier, last = (self._record(name) for name in (*_EARLIER[stage], stage))
        if last is None:
            return None
        return {
            name: section
            for record in (*earlier, last)
            if record is not None
            for name, section in record["settings"].items()
        }

    def place(self, reference: str) -> Folder:
        """The folder of a path or URI. `run:PATH` is relative to the run folder and moves with it."""
        if not reference.startswith(_FROM_RUN):
            return Folder(reference)
        scheme, mark, root = self.folder.uri.rpartition("://")
        path = posixpath.join(root, reference.removeprefix(_FROM_RUN))
        return Folder(scheme + mark + posixpath.normpath(path))

    def _sections(self, stage: str) -> tuple[str, ...]:
        """The sections of the configuration that a stage reads, in addition to those of earlier stages."""
        config = self.config
        match stage:
            case "rois":
                of_table = ("classes",) * (config.rois.kind == "table")  # they name the crops of its rows
                return "seed", "rois", *of_table, *("source",) * config.simulates_inputs
            case "export":
                return "classes", "source", "window", "grid", "composite", "labels", "patch"
            case "compact":
                return "seed", "shards"
            case "tune":
                return "seed", "model", config.tune.stage, "tune"
            case "pretrain" | "finetune":
                return "seed", "model", stage
        return (stage, "report") if stage == "predict" else (stage,)  # evaluate

    def _settings(self, stage: str) -> dict[str, Any]:
        data = self.config.model_dump(mode="json")
        return {section: data[section] for section in self._sections(stage)}

    def _record_name(self, stage: str) -> str:
        """The file of the record of a stage. Each map and each sweep of a run has its own."""
        named = {
            "predict": f"maps/{self.config.predict.name}/summary.json",
            "tune": f"tune/{self.config.tune.name}/summary.json",
        }
        return named.get(stage, f"stages/{stage}.json")

    def _record(self, stage: str) -> dict[str, Any] | None:
        name = self._record_name(stage)
        if not self.folder.exists(name):
            return None
        try:
            record: dict[str, Any] = json.loads(self.folder.read_text(name))
        except ValueError as error:
            raise InputError(
                f"{self.folder}/{name} is damaged ({error}). Delete it and run {stage} again."
            ) from error
        return record

    def _write(self, stage: str, summary: Summary | None, inputs: Inputs) -> None:
        record = {"settings": self._settings(stage), "inputs": dict(inputs), "summary": summary}
        self.folder.write_text(self._record_name(stage), json.dumps(record, indent=1, sort_keys=True) + "\n")
        self.folder.write_text(_CONFIG, self._merged(stage).to_yaml())

    def _merged(self, stage: str) -> Config:
        """The configuration in the folder with the sections of this stage replaced."""
        kept = config_of(self.folder)
        if kept is None:
            return self.config
        return kept.model_copy(update={name: getattr(self.config, name) for name in self._sections(stage)})

    def _check(self, stage: str, record: dict[str, Any]) -> None:
        now_read = self._settings(stage)
        was, now = (
            flat(_of_source_kind({name: data[name] for name in record["settings"].keys() & now_read.keys()}))
            for data in (record["settings"], now_read)
        )
        # A setting that the record lacks is newer, and matters if somebody wrote it. Another recipe or kind
        # of source changes settings that nobody wrote.
        written = flat(self.config.model_dump(mode="json", exclude_unset=True)).keys()
        known = (was.keys() | (now.keys() & written)) - _FREE
        changed = sorted(key for key in known if was.get(key) != now.get(key))
        if not changed:
            return
        chosen = [key for key in changed if key.endswith(".recipe") or key == "source.kind"]
        sections = tuple(f"{key.rpartition('.')[0]}." for key in chosen)
        changed = [k for k in changed if k in chosen or k in written or not k.startswith(sections)]
        lines = [f"{key}: {_short(was.get(key))} there, {_short(now.get(key))} now" for key in changed]
        remedy = _REMEDY.get(stage, "Use another --run folder, or leave out --config and these settings.")
        raise InputError(
            f"{self.folder} was made with a different configuration of {stage}:\n{listed(lines)}\n{remedy}"
        )


def config_of(folder: Folder) -> Config | None:
    """The configuration of the run in a folder, None before its first stage.

    Raises InputError if the file is damaged.
    """
    if not folder.exists(_CONFIG):
        return None
    return parse_config(folder.read_bytes(_CONFIG), f"{folder}/{_CONFIG}")


def _of_source_kind(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by section, without those of the kinds of source that are not used."""
    if "source" not in settings:
        return settings
    source = settings["source"]
    used = {name: value for name, value in source.items() if name == source["kind"] or name not in _KINDS}
    return settings | {"source": used}


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    if isinstance(data, dict) and data:
        items = (flat(value, f"{prefix}.{key}" if prefix else key) for key, value in data.items())
        return {key: value for item in items for key, value in item.items()}
    return {prefix: data}


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")
