"""A trial of a sweep: a training beside a process of Ray Tune, which hears of every validated epoch."""

from __future__ import annotations

import json
import queue
from concurrent.futures import wait
from dataclasses import asdict, replace
from typing import Any

import ray
from ray.tune import Trainable

from cropray.config import Config
from cropray.config.load import updated
from cropray.run import Run
from cropray.storage import Folder, in_thread
from cropray.tracking.runs import tracked
from cropray.training.driver import open_control, train_in
from cropray.training.plan import make_plan
from cropray.training.validate import SCORE, History
from cropray.tuning.search import UNKNOWN
from cropray.tuning.space import TRIAL, Trial, judged

_POLL_S = 0.2
_PATIENCE_S = 60.0  # for the workers to keep their state and leave


class TrialTraining(Trainable):  # type: ignore[misc]  # Ray does not say its type
    """Trains in a thread; an earlier attempt of the same trial is taken up from its last state.

    Where Tune ends a trial, its workers are asked to leave, as by an interrupt. Tune would kill a function
    instead, and the room of its workers would come back only by way of an actor that asks Ray's dashboard,
    and gives up for good when that does not answer. `sweep` is the desk where all trials are asked to leave
    before their time.
    """

    def setup(
        self, proposed: dict[str, Any], *, folder: str, config: Config, parent: str, sweep: Any
    ) -> None:
        self._trial = Trial(**proposed)
        self._place = Folder(folder).child(f"tune/{config.tune.name}/trials/{self._trial.id}")
        self._sweep, self._desk, self._left = sweep, open_control(), False
        self._results = queue.SimpleQueue[dict[str, Any]]()
        self._last: dict[str, Any] = {SCORE: UNKNOWN, "epoch": 0}
        self._training = in_thread(lambda: self._train(Folder(folder), config, parent))

    def step(self) -> dict[str, Any]:
        """The next validated epoch, the last one when the training has ended. Raises what ended it."""
        while self._results.empty() and not self._training.done():
            if ray.get(self._sweep.leaving.remote()):
                self._left = True
                self._leave()
                return {**self._last, "done": True}
            wait([self._training], timeout=_POLL_S)
        if self._results.empty():
            self._training.result()
            raise RuntimeError("the training ended before its last epoch")
        self._last = self._results.get()
        if self._last["done"]:
            self._training.result()
        return self._last

    def cleanup(self) -> None:
        """Tune ends a trial that is under way, and was not asked to leave, where it fell behind others."""
        behind = not self._training.done() and not self._left
        self._leave()
        if behind and self._trial.end == "open":
            self._keep(replace(self._trial, end="behind"))

    def _leave(self) -> None:
        self._desk.leave.remote()
        wait([self._training], timeout=_PATIENCE_S)

    def _keep(self, trial: Trial) -> None:
        self._trial = trial
        self._place.write_text(TRIAL, json.dumps(asdict(trial)) + "\n")

    def _train(self, folder: Folder, config: Config, parent: str) -> None:
        identity, values, settings = self._trial.id, self._trial.values, config.tune
        if not self._place.exists(TRIAL):
            self._keep(self._trial)  # whatever ends it now, it is tried again with these values
        run = Run(folder, updated(config, values))
        plan = make_plan(run, settings.stage)
        epochs, told = plan.recipe.epochs, set[int]()

        def tell(history: History) -> None:
            """Keep the record first: Tune may end the trial by its answer."""
            self._keep(judged(identity, values, history, epochs))
            for entry in history:
                if SCORE in entry and entry["epoch"] not in told:
                    told.add(entry["epoch"])
                    score = UNKNOWN if entry[SCORE] is None else entry[SCORE]
                    last = entry["epoch"] == epochs
                    self._results.put({SCORE: score, "epoch": entry["epoch"], "done": last})

        with tracked(run, f"tune/{settings.name}/{identity}", parent=parent) as tracker:
            tell(train_in(run, settings.stage, plan, self._place, tracker, tell, self._desk, settings.cpus))
