"""Tiles that fail are counted by what they failed of, and told in words that help."""

import pytest

from cropray.errors import InputError
from cropray.pipeline.fan_out import JOB_FAILURES
from cropray.pipeline.monitor import check_failures


def test_tiles_that_were_given_up_are_counted() -> None:
    with pytest.raises(InputError, match=r"2 of 9 tiles failed, and 5 were not tried \(ray\.max"):
        check_failures("export", {"a": "no answer", "b": "no answer"}, 9, untried=5)


def test_failures_are_grouped_by_error_the_most_frequent_first() -> None:
    failures = {"a": "no CRS", "b": "no network", "c": "no network"}
    with pytest.raises(InputError) as caught:
        check_failures("export", failures, 7)
    lines = str(caught.value).splitlines()
    assert lines[:3] == [
        "export: 3 of 7 tiles failed:",
        "  2 x no network (such as b)",
        "  1 x no CRS (such as a)",
    ]
    assert "run the same command again" in lines[-1]


def test_many_different_errors_are_cut_and_counted() -> None:
    with pytest.raises(InputError, match="and 3 other errors"):
        check_failures("export", {str(i): f"error {i}" for i in range(8)}, 8)


def test_no_failure_is_no_error() -> None:
    check_failures("predict", {}, 3)


def test_faults_of_the_program_end_a_stage() -> None:
    for fault in (AssertionError, TypeError, AttributeError, KeyboardInterrupt):
        assert not issubclass(fault, JOB_FAILURES)
