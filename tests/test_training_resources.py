"""What trainings and sweeps ask of Ray: by the settings, against what there is, and told while they wait."""

from datetime import datetime
from typing import Any

import pytest

from cropray.config import Config
from cropray.config.load import updated
from cropray.config.training import TrainConfig
from cropray.errors import InputError
from cropray.training.monitor import (
    ResourceRequest,
    check_workers,
    gone,
    placed,
    waiting,
    worker_resources,
)
from cropray.tuning.space import check_trials

SPACE = {"finetune.lr": {"loguniform": [1e-5, 1e-2]}}


@pytest.mark.parametrize(
    ("gpus", "have", "each"),
    [
        (None, {"CPU": 8.0}, {"CPU": 1}),
        (None, {"CPU": 8.0, "GPU": 1.0}, {"CPU": 1}),  # not one for each of two workers
        (None, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 1, "GPU": 1}),
        (0, {"CPU": 8.0, "GPU": 2.0}, {"CPU": 1}),
        (1, {"CPU": 8.0}, {"CPU": 1, "GPU": 1}),  # that is not there yet
    ],
)
def test_workers_take_gpus_that_are_there_unless_they_are_told_to_ask(
    gpus: float | None, have: dict[str, float], each: dict[str, float]
) -> None:
    assert worker_resources(TrainConfig(workers=2, gpus=gpus), have) == each


def test_one_worker_can_ask_for_a_share_of_a_gpu_and_several_cannot() -> None:
    assert worker_resources(TrainConfig(gpus=0.25), {}, cpus=0.5) == {"CPU": 0.5, "GPU": 0.25}
    with pytest.raises(ValueError, match="cannot share a GPU"):
        TrainConfig(gpus=0.5, workers=2)
    with pytest.raises(ValueError, match="less than or equal to 1"):
        TrainConfig(gpus=2)


def test_gpus_that_ray_never_has_are_refused_with_the_arithmetic() -> None:
    request = ResourceRequest((2, 4), {"CPU": 1, "GPU": 1})
    check_workers("pretrain", request, {"CPU": 2.0, "GPU": 2.0})
    check_workers("pretrain", request, None)  # nobody can tell: it is waited for
    with pytest.raises(
        InputError, match=r"pretrain.workers = 2 × 1 GPUs each are 2 GPUs, but Ray has 1: set pretrain.gpus"
    ):
        check_workers("pretrain", request, {"CPU": 8.0, "GPU": 1.0})
    with pytest.raises(InputError, match=r"are 2 CPUs, but Ray has 1: set fewer pretrain.workers"):
        check_workers("pretrain", request, {"CPU": 1.0, "GPU": 4.0})


def sweep(**settings: Any) -> Config:
    return updated(Config(), {"tune.space": SPACE, "tune.concurrent": 2, **settings})


def test_trials_that_cannot_find_room_are_refused_with_the_arithmetic() -> None:
    have = {"CPU": 2.0}
    check_trials(sweep(), have, have)
    with pytest.raises(
        InputError,
        match=r"tune.concurrent = 2 .* × finetune.workers = 2 × 1 CPUs each are 4 CPUs, but Ray has 2",
    ):
        check_trials(sweep(**{"finetune.workers": 2}), have, have)
    check_trials(sweep(**{"finetune.workers": 2}), have, None)
    check_trials(sweep(**{"finetune.workers": [1, 8]}), have, have)  # one each is enough


def test_trials_share_a_gpu_only_where_they_are_told_to() -> None:
    have = {"CPU": 8.0, "GPU": 1.0}
    with pytest.raises(
        InputError, match=r"workers = 1 × 1 GPUs each are 2 GPUs, but Ray has 1: .*finetune.gpus"
    ):
        check_trials(sweep(), have, have)
    check_trials(sweep(**{"finetune.gpus": 0.5}), have, have)
    check_trials(sweep(**{"finetune.gpus": 0}), have, have)
    check_trials(sweep(), have, have | {"GPU": 4.0})


def test_of_workers_that_are_searched_the_most_must_find_room() -> None:
    have = {"CPU": 2.0}
    searched = sweep(**{"tune.space": {"finetune.workers": {"choice": [1, 4]}}})
    with pytest.raises(InputError, match=r"finetune.workers = 4 .* 8 CPUs"):
        check_trials(searched, have, have)


def test_what_is_waited_for_is_said_with_what_is_free() -> None:
    request = ResourceRequest((2, 4), {"CPU": 1, "GPU": 1, "ee": 0.5}, autoscaled=True)
    have, free = {"CPU": 8.0, "GPU": 1.0}, {"CPU": 3.0}
    said = waiting(request, have, free)
    for fact in (
        "2 to 4 workers",
        "1 CPU and 1 GPU and 0.5 ee each",
        "3 of 8 CPUs",
        "0 of 1 GPUs",
        "0 of 0 ees",
    ):
        assert fact in said
    assert "adds nodes" in said
    alone = waiting(ResourceRequest((1, 1), {"CPU": 1}), have, free)
    assert "1 worker with" in alone
    assert "nodes" not in alone


def test_workers_are_starting_once_ray_has_placed_what_they_request() -> None:
    request = ResourceRequest((2, 2), {"CPU": 1, "GPU": 1})
    bundles = {0: {"CPU": 1.0, "GPU": 1.0}, 1: {"CPU": 1.0, "GPU": 1.0}}
    nodes = {"bundles_to_node_id": {0: "a", 1: "b"}}
    assert placed([{"state": "CREATED", "bundles": bundles, **nodes}], request) == ["a", "b"]
    assert placed([{"state": "PENDING", "bundles": bundles, **nodes}], request) == []
    another = {"state": "CREATED", "bundles": {0: bundles[0]}, "bundles_to_node_id": {0: "a"}}
    assert placed([another], request) == []
    assert placed([], request) == []


def test_lost_workers_are_counted_by_the_nodes_they_went_with() -> None:
    since = datetime(2026, 5, 1, 10, 20, 30)
    said = gone(["a", "b", "b"], {"a"}, since)
    assert "2 of 3 workers" in said
    assert "10:20:30" in said
    assert not any(figure.isdigit() for figure in gone(["a", "b"], {"a", "b"}, since).replace("10:20:30", ""))
