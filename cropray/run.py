"""A run: one folder, one configuration, and a record of each stage that was begun or finished."""

from __future__ import annotations

import json
import posixpath
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from cropray.config import Config
from cropray.config.imagery import EarthEngineConfig
from cropray.config.load import parse_config
from cropray.config.training import OPERATIONAL
from cropray.errors import InputError
from cropray.progress import say
from cropray.storage import Folder

Summary = dict[str, Any]
"""What a stage did, as JSON: shown to the user, kept in the record."""

Inputs = Mapping[str, str]
"""What a stage rests on beside its settings, by name: fingerprints of files, shards, weights."""

_NO_INPUTS: Final[Inputs] = {}

# The sections on which each stage rests, beside those of the stages before it.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "rois": ("seed", "classes", "rois", "source"),
    "export": ("classes", "window", "grid", "composite", "labels", "patch"),
    "compact": ("shards",),
    "pretrain": ("model", "pretrain"),
    "finetune": ("model", "finetune"),
    "tune": ("model", "pretrain", "finetune", "tune"),
    "evaluate": ("evaluate",),
    "predict": ("predict",),
}
# Settings in these that change no result, or that stand among the inputs by what they name.
_FREE = (
    {"predict.batch_size", "predict.model", "evaluate.model"}
    | {f"tune.{name}" for name in ("trials", "concurrent", "cpus", "budget_s", "evaluate")}
    | {f"source.earthengine.{name}" for name in EarthEngineConfig.model_fields if name != "eucropmap_year"}
    | {f"{stage}.{name}" for stage in ("pretrain", "finetune") for name in OPERATIONAL}
)
_BEFORE: dict[str, tuple[str, ...]] = {
    "rois": (),
    "export": ("rois",),
    "compact": ("rois", "export"),
    "pretrain": ("rois", "export", "compact"),
    "finetune": ("rois", "export", "compact"),
    "tune": ("rois", "export", "compact"),
    "evaluate": ("rois", "export", "compact"),
    "predict": (),
}


_CONFIG = "config.yaml"
_FROM_RUN = "run:"
_REMEDY = {
    "predict": "give this map another name: --set predict.name=…",
    "tune": "give this sweep another name: --set tune.name=…",
}


@dataclass(frozen=True)
class Run:
    """A run folder with its configuration.

    Layout: config.yaml, stages/, world/, rois/, parts/, events/, ledger.parquet, shards/<split>/,
    checkpoints/<stage>/, models/<stage>/, tune/<name>/, mlflow/, evaluation/, maps/<name>/, report.html.
    """

    folder: Folder
    config: Config

    def begin(self, stage: str) -> None:
        """Raises InputError where the folder belongs to another configuration of this stage or of
        one that it rests on, or where a stage before it is not finished.
        """
        for earlier in _BEFORE[stage]:
            record = self._record(earlier)
            if record is None or record["summary"] is None:
                raise InputError(f"{stage} needs {earlier} first: cropray {earlier} --run {self.folder} …")
            self._check(earlier, record)
        record = self._record(stage)
        if record is not None:
            self._check(stage, record)

    def finished(self, stage: str, inputs: Inputs = _NO_INPUTS) -> Summary | None:
        """The summary of a stage that was finished before with the same inputs, else None."""
        summary, changed = self.summary(stage), self.changed(stage, inputs)
        if summary is None or not changed:
            return summary
        say(f"{stage}: runs again: {', '.join(changed)} changed since it was finished")
        return None

    def changed(self, stage: str, inputs: Inputs) -> list[str]:
        """Names of the inputs that are not those of the stage's last attempt; none before the first."""
        was = inputs if self._record(stage) is None else self.inputs(stage)
        return sorted(name for name, value in inputs.items() if was.get(name) != value)

    def inputs(self, stage: str) -> Inputs:
        """What the stage's last attempt rested on; nothing before the first."""
        inputs: Inputs = (self._record(stage) or {}).get("inputs", {})
        return inputs

    def claim(self, stage: str, inputs: Inputs = _NO_INPUTS) -> None:
        """Keep the folder for this configuration of a stage that now writes files of it.

        To be called when the inputs are known to be usable, so that a mistake in the settings can be
        corrected. A stage without files that could be mistaken for another configuration's need not.
        """
        self._write(stage, None, inputs)

    def finish(self, stage: str, summary: Summary, inputs: Inputs = _NO_INPUTS) -> None:
        self._write(stage, summary, inputs)

    def summary(self, stage: str) -> Summary | None:
        """What a finished stage recorded, None where it is not finished."""
        record = self._record(stage)
        return None if record is None else record["summary"]

    def recorded(self, stage: str) -> dict[str, Any] | None:
        """The settings, by section as JSON, of a stage's last attempt and of the stages before it.

        None before the first attempt.
        """
        *earlier, last = (self._record(name) for name in (*_BEFORE[stage], stage))
        if last is None:
            return None
        return {
            name: section
            for record in (*earlier, last)
            if record is not None
            for name, section in record["settings"].items()
        }

    def place(self, reference: str) -> Folder:
        """A folder by path or URI; `run:PATH` is reckoned from the run folder, wherever it is moved."""
        if not reference.startswith(_FROM_RUN):
            return Folder(reference)
        scheme, mark, root = self.folder.uri.rpartition("://")
        path = posixpath.join(root, reference.removeprefix(_FROM_RUN))
        return Folder(scheme + mark + posixpath.normpath(path))

    def _settings(self, stage: str) -> dict[str, Any]:
        data = self.config.model_dump(mode="json")
        return {section: data[section] for section in _SECTIONS[stage]}

    def _place(self, stage: str) -> str:
        """Where the record of a stage is: a run has many maps and sweeps, each with its own."""
        named = {
            "predict": f"maps/{self.config.predict.name}/summary.json",
            "tune": f"tune/{self.config.tune.name}/summary.json",
        }
        return named.get(stage, f"stages/{stage}.json")

    def _record(self, stage: str) -> dict[str, Any] | None:
        name = self._place(stage)
        if not self.folder.exists(name):
            return None
        try:
            record: dict[str, Any] = json.loads(self.folder.read_text(name))
        except ValueError as error:
            raise InputError(
                f"{self.folder}/{name} is damaged ({error}); delete it and run {stage} again"
            ) from error
        return record

    def _write(self, stage: str, summary: Summary | None, inputs: Inputs) -> None:
        record = {"settings": self._settings(stage), "inputs": dict(inputs), "summary": summary}
        self.folder.write_text(self._place(stage), json.dumps(record, indent=1, sort_keys=True) + "\n")
        self.folder.write_text(_CONFIG, self._merged(stage).to_yaml())

    def _merged(self, stage: str) -> Config:
        """The configuration so far, with this stage's sections: other commands may have set others."""
        so_far = config_of(self.folder)
        if so_far is None:
            return self.config
        return so_far.model_copy(update={name: getattr(self.config, name) for name in _SECTIONS[stage]})

    def _check(self, stage: str, record: dict[str, Any]) -> None:
        was, now = flat(record["settings"]), flat(self._settings(stage))
        changed = sorted(key for key in (was.keys() | now.keys()) - _FREE if was.get(key) != now.get(key))
        if changed:
            lines = [
                f"  {key}: {_short(was.get(key))} there, {_short(now.get(key))} now" for key in changed[:8]
            ]
            more = [f"  … and {len(changed) - 8} more"] if len(changed) > 8 else []
            raise InputError(
                f"{self.folder} was made by another configuration of {stage}:\n"
                + "\n".join(lines + more)
                + "\n"
                + _REMEDY.get(stage, "use another --run folder, or the settings in its config.yaml")
            )


def config_of(folder: Folder) -> Config | None:
    """The configuration of the run in a folder, None where no stage was begun. Raises InputError."""
    if not folder.exists(_CONFIG):
        return None
    return parse_config(folder.read_bytes(_CONFIG), f"{folder}/{_CONFIG}")


def flat(data: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted key."""
    if isinstance(data, dict) and data:
        items = (flat(value, f"{prefix}.{key}" if prefix else key) for key, value in data.items())
        return {key: value for item in items for key, value in item.items()}
    return {prefix: data}


def _short(value: Any) -> str:
    return textwrap.shorten(repr(value), 60, placeholder=" …")
