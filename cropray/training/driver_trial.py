"""A trial of a sweep: a training beside a process of Ray Tune, which hears of every validated epoch."""

from __future__ import annotations

import json
import queue
from concurrent.futures import wait
from dataclasses import asdict
from typing import Any

from ray.tune import Trainable

from cropray.config import Config
from cropray.overrides import updated
from cropray.run import Run
from cropray.storage import Folder
from cropray.threads import in_thread
from cropray.tracking.runs import tracked
from cropray.training.driver import train_in
from cropray.training.driver_desk import open_desk
from cropray.training.history import History
from cropray.training.plan import make_plan
from cropray.training.trial import TRIAL, judged
from cropray.training.validate import SCORE

_POLL_S = 0.2
_PATIENCE_S = 60.0  # for the workers to keep their state and leave
_UNKNOWN = -1.0  # below every score: what an epoch counts of which nothing is known


class TrialTraining(Trainable):  # type: ignore[misc]  # Ray does not say its type
    """Trains in a thread; an earlier attempt of the same trial is taken up from its last state.

    Where Tune ends a trial, its workers are asked to leave, as by an interrupt. Tune would kill a function
    instead, and the room of its workers would come back only by way of an actor that asks Ray's dashboard,
    and gives up for good when that does not answer.
    """

    def setup(self, values: dict[str, Any], *, folder: str, config: Config, parent: str) -> None:
        self._results = queue.SimpleQueue[dict[str, Any]]()
        self._desk = open_desk()
        self._training = in_thread(lambda: self._train(values, folder, config, parent))

    def step(self) -> dict[str, Any]:
        """The next validated epoch, the last one when the training has ended. Raises what ended it."""
        while self._results.empty() and not self._training.done():
            wait([self._training], timeout=_POLL_S)
        if self._results.empty():
            self._training.result()
            raise RuntimeError("the training ended before its last epoch")
        result = self._results.get()
        if result["done"]:
            self._training.result()
        return result

    def cleanup(self) -> None:
        self._desk.ask_to_leave.remote()
        wait([self._training], timeout=_PATIENCE_S)

    def _train(self, values: dict[str, Any], folder: str, config: Config, parent: str) -> None:
        run, settings = Run(Folder(folder), updated(config, values)), config.tune
        name = f"tune/{settings.name}"
        place = run.folder.child(f"{name}/trials/{self.trial_id}")
        plan = make_plan(run, settings.stage)
        epochs, told = plan.recipe.epochs, set[int]()

        def tell(history: History) -> None:
            """Keep the record first: Tune may end the trial by its answer."""
            trial = judged(self.trial_id, values, history, epochs)
            place.write_text(TRIAL, json.dumps(asdict(trial)) + "\n")
            for entry in history:
                if SCORE in entry and entry["epoch"] not in told:
                    told.add(entry["epoch"])
                    score = _UNKNOWN if entry[SCORE] is None else entry[SCORE]
                    last = entry["epoch"] == epochs
                    self._results.put({SCORE: score, "epoch": entry["epoch"], "done": last})

        with tracked(run, f"{name}/{self.trial_id}", parent=parent) as tracker:
            tell(train_in(run, settings.stage, plan, place, tracker, tell, self._desk, settings.cpus))
