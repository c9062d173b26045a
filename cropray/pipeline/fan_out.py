"""Jobs fanned out over a cluster with Ray Data: from_items → flat_map → outcomes, streamed to the driver.

A row of the dataset is a batch of jobs. A Ray task runs it with several threads and yields outcomes as they
come. The next task runs in the same process, so each process makes its worker (with its imagery source or its
model) once. Tasks beat Ray Data's actors: 400 short jobs took half the time, and work resumed 0.4 s after the
loss of a node instead of 15 s.

A process can die with its node, of too much memory, or of its job. Ray's own retries resume a task by
position, but threads finish in any order: outcomes would be lost or doubled. So Ray Data skips a batch that
dies. Jobs without an outcome go into the next dataset, in smaller batches, at last one by one. Only a job
that kills its own process is given up.
"""

from __future__ import annotations

import functools
import time
import traceback
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from cropray.config import RayConfig
from cropray.errors import InputError, format_error
from cropray.pipeline.monitor import Losses, cannot_start, report_missing_resources

RETRIES = 3
"""How often a job whose process died is tried again."""

JOB_FAILURES = (ValueError, OSError, RuntimeError, ArithmeticError, LookupError, MemoryError)
"""What input, storage, network or imagery can raise; any other exception is a fault of the program."""

_BATCH_ROUNDS = 16  # jobs a thread in a batch, at most: what one death can put off

Job = TypeVar("Job")
Result = TypeVar("Result")
Row = dict[str, Any]


@dataclass(frozen=True)
class Outcome(Generic[Job, Result]):
    """A job with its result, or with its error, which is empty if the job was done."""

    job: Job
    result: Result | None
    error: str
    seconds: float


def fan_out(
    stage: str,
    worker: Callable[..., Callable[[Job], Result]],
    arguments: Sequence[Any],
    jobs: Sequence[Job],
    *,
    config: RayConfig,
    processes: int,
    threads: int,
    resources: Mapping[str, float],
    failures: tuple[type[Exception], ...] = JOB_FAILURES,
) -> Generator[Outcome[Job, Result], None, None]:
    """Run `worker(*arguments)(job)` for every job and yield each outcome. Ray must be running.

    Each process makes one worker for its threads, and reserves `resources` (CPU, GPU, custom ones) on its
    node. `failures` become outcomes. Any other exception is raised here, with its traceback as a note.
    Closing the iterator cancels what is left. Raises InputError if processes cannot start.
    """
    from ray import cloudpickle

    made_by = cloudpickle.dumps((worker, tuple(arguments)))
    left, losses = dict(enumerate(jobs)), Losses(stage, patience=RETRIES)
    with report_missing_resources(losses, resources, config):
        for at_once, rounds in ((threads, _BATCH_ROUNDS), (threads, 1), (1, 1), (1, 1)):
            if not left:
                return
            work = functools.partial(run_batch, made_by=made_by, threads=at_once, failures=failures)
            rows = [{"jobs": cloudpickle.dumps(jobs)} for jobs in batches(left, processes, at_once, rounds)]
            with closing(on_ray_data(rows, work, processes, resources, losses)) as finished:
                for row in finished:
                    losses.begun.set()
                    for pickled in cloudpickle.loads(row["outcomes"]):
                        number, result, error, seconds = cloudpickle.loads(pickled)
                        if isinstance(error, BaseException):
                            raise error
                        yield Outcome(left.pop(number), result, error, seconds)
    for job in left.values():
        yield Outcome(job, None, f"its process died, {1 + RETRIES} times: {losses.reason}", 0.0)


def batches(
    jobs: Mapping[int, Job], processes: int, threads: int, rounds: int
) -> Iterator[list[tuple[int, Job]]]:
    """Numbered jobs in batches of whole rounds of `threads`, ever smaller: processes end together."""
    left, first = list(jobs.items()), 0
    while first < len(left):
        share = (len(left) - first) // (threads * (2 * processes if processes > 1 else 1))
        size = threads * min(max(share, 1), rounds)
        yield left[first : first + size]
        first += size


def on_ray_data(
    rows: Sequence[Row],
    work: Callable[[Row], Iterator[Row]],
    processes: int,
    resources: Mapping[str, float],
    losses: Losses,
) -> Generator[Row, None, None]:
    """What `work` yields for the rows: a task a row, at most `processes` at the same time."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.target_max_block_size = 1  # a block a row: the driver sees it before the task ends
    context.max_errored_blocks = -1
    context.execution_no_progress_timeout_s = -1  # a job, or the wait for a node, may take long
    with ray.data.DataContext.current(context), warnings.catch_warnings():
        # Ray Data retries for ever unless told otherwise; `max_retries` has no other name yet.
        warnings.filterwarnings("ignore", "`ray_remote_args` is deprecated", DeprecationWarning)
        finished = ray.data.from_items(list(rows), override_num_blocks=len(rows)).flat_map(
            work,
            compute=ray.data.TaskPoolStrategy(size=min(processes, len(rows))),
            num_cpus=resources["CPU"],
            num_gpus=resources.get("GPU"),
            resources={name: n for name, n in resources.items() if name not in ("CPU", "GPU")} or None,
            max_calls=0,  # else each task with a GPU starts a process, which loads its model
            max_retries=0,
        )
    finished.set_name(losses.stage)
    blocks = finished.iter_batches(batch_size=None, prefetch_batches=0, batch_format="pyarrow")
    with losses.heard(), closing(iter(blocks)) as tables:
        for table in tables:
            yield from table.to_pylist()


def run_batch(
    row: Row, *, made_by: bytes, threads: int, failures: tuple[type[Exception], ...]
) -> Generator[Row, None, None]:
    """In a task: the outcomes of a batch, pickled. Those that come at the same time share a row.

    The first row is empty: work has begun. Faults are outcomes, too, because Ray Data skips what raises.
    """
    from ray import cloudpickle

    def outcome(number: int, result: Any, error: str | BaseException, start: float) -> Any:
        return cloudpickle.dumps((number, result, error, time.monotonic() - start))

    def run(number: int, job: Any) -> Any:
        start = time.monotonic()
        try:
            return outcome(number, worker(job), "", start)
        except failures as failure:
            return outcome(number, None, format_error(failure), start)
        except BaseException as fault:
            return outcome(number, None, _portable(fault), start)

    try:
        worker = _make_worker(made_by)
    except Exception as error:
        fault = _portable(InputError(cannot_start(format_error(error))))
        yield {"outcomes": cloudpickle.dumps([outcome(-1, None, fault, 0.0)])}
        return
    yield {"outcomes": cloudpickle.dumps([])}
    pool = ThreadPoolExecutor(threads)
    try:
        running = {pool.submit(run, number, job) for number, job in cloudpickle.loads(row["jobs"])}
        while running:
            done, running = wait(running, return_when=FIRST_COMPLETED)
            yield {"outcomes": cloudpickle.dumps([future.result() for future in done])}
    finally:  # a batch that is cancelled begins no more jobs
        pool.shutdown(cancel_futures=True)


@functools.lru_cache(maxsize=1)
def _make_worker(made_by: bytes) -> Callable[[Any], Any]:
    """The worker of this process. It replaces the worker of an earlier stage."""
    from ray import cloudpickle

    worker, arguments = cloudpickle.loads(made_by)
    return cast(Callable[[Any], Any], worker(*arguments))


def _portable(error: BaseException) -> BaseException:
    """An exception that can be pickled, with its traceback as a note."""
    from ray import cloudpickle

    error.add_note("In a process of Ray:\n" + "".join(traceback.format_exception(error)))
    try:
        return cast(BaseException, cloudpickle.loads(cloudpickle.dumps(error)))
    except Exception:
        return RuntimeError(*error.__notes__)
