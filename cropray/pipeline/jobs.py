"""What is different in a job of `ray job submit`."""

from __future__ import annotations

import os

from cropray.types import InputError

_OF_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray sets it for the driver of a job


def kept(reference: str) -> str:
    """The run folder as given. Raises InputError for one that would go with the job.

    A job runs in a copy of its working directory, which Ray deletes: a relative path lies in it.
    """
    if (
        _OF_A_JOB in os.environ
        and "://" not in reference
        and not os.path.isabs(os.path.expanduser(reference))
    ):
        raise InputError(
            f"--run {reference} is relative to the job's working directory, which Ray deletes after the job: "
            "give an absolute path that every node sees, or a URI (s3://…, gs://…)"
        )
    return reference
