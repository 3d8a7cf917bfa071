"""Where do cells run? Side by side in warm processes of this machine, or as Ray tasks; no scheduler of our own.

An engine takes jobs and gives each back when its folder is in place. It must not know what a cell is about.
"""

import contextlib
import gc
import logging
import multiprocessing
import os
import sys
import threading
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from hftl.compare.cells import Job, record_loss, run_job
from hftl.errors import UserError
from hftl.run_record import count_cores
from hftl.runtime.cpu import SPIN_COUNT

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 2  # of a cell whose worker died under it, for want of memory for instance
# Read once when libraries are imported: set before a worker starts.
WORKER_ENVIRONMENT = {
    "GOMP_SPINCOUNT": SPIN_COUNT,
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}


def count_devices() -> int:
    """Accelerators of this machine, or 1."""
    import torch

    return max(1, torch.cuda.device_count())


def count_default_jobs() -> int:
    """Cells side by side: one for each accelerator, or one for each processor core.

    On two cores, two cells with one thread each finish 1.3 to 1.8 times as many steps as one with two.
    """
    import torch

    return count_devices() if torch.cuda.is_available() else count_cores()


def run_local(jobs: list[Job], *, num_workers: int, may_start: Callable[[], bool]) -> Iterator[Job]:
    """Run jobs in `num_workers` processes, which import the libraries once and share the cores.

    Args:
        may_start: asked before each job; once it says no, what is running is finished and nothing more is begun.

    Yields:
        Each job when its folder is in place. A job whose worker dies is run once more, then recorded as failed.
    """
    waiting, attempts = deque(jobs), Counter()
    while waiting and may_start():
        running: dict[Future, Job] = {}
        try:
            with _open_pool(num_workers) as pool:
                while True:
                    while waiting and len(running) < num_workers and may_start():
                        job = waiting.popleft()
                        running[pool.submit(run_job, job)] = job
                    if not running:
                        break
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                        yield running.pop(future)
        except BrokenProcessPool:
            for job in running.values():
                yield from _try_again(job, waiting, attempts)


def run_ray(jobs: list[Job], *, num_workers: int, may_start: Callable[[], bool]) -> Iterator[Job]:
    """Run jobs as Ray tasks, each with its CPUs and GPU declared, on a running cluster or on a local one.

    The campaign folder must be at the same path on every machine. Ray runs a lost task again.
    """
    try:
        import ray
    except ImportError as error:
        raise UserError('--engine ray needs Ray: pip install "hftl[ray]".') from error
    if not ray.is_initialized():
        address = "auto" if os.environ.get("RAY_ADDRESS") else None
        ray.init(address=address, num_cpus=None if address else num_workers, log_to_driver=False)
    num_gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
    environment = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(_threads_each(num_workers))}
    task = ray.remote(
        num_cpus=1, num_gpus=num_gpus, max_retries=MAX_ATTEMPTS - 1, runtime_env={"env_vars": environment}
    )(run_job)
    waiting, running = deque(jobs), {}
    while True:
        while waiting and len(running) < num_workers and may_start():
            job = waiting.popleft()
            running[task.remote(job)] = job
        if not running:
            return
        (done, *_), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(done)
        try:
            ray.get(done)
        except ray.exceptions.WorkerCrashedError as error:
            record_loss(job, f"The worker died {MAX_ATTEMPTS} times: {error}")
        yield job


ENGINES: dict[str, Callable[..., Iterator[Job]]] = {"local": run_local, "ray": run_ray}


def _try_again(job: Job, waiting: deque, attempts: Counter) -> Iterator[Job]:
    attempts[job.folder] += 1
    if attempts[job.folder] < MAX_ATTEMPTS:
        logger.warning("The worker of %s died; it is run again.", job.cell.name)
        waiting.append(job)
        return
    record_loss(job, f"The worker died {MAX_ATTEMPTS} times, most likely for want of memory.")
    yield job


def _threads_each(num_workers: int) -> int:
    return max(1, count_cores() // num_workers)


@contextlib.contextmanager
def _open_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Fresh processes: a fork of one that has used torch's threads would hang."""
    context = multiprocessing.get_context("spawn")
    devices = context.SimpleQueue()
    for index in range(num_workers):
        devices.put(index % count_devices())
    environment = {**WORKER_ENVIRONMENT, "OMP_NUM_THREADS": str(_threads_each(num_workers))}
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        with ProcessPoolExecutor(
            num_workers, mp_context=context, initializer=_start_worker, initargs=(os.getpid(), devices)
        ) as pool:
            yield pool
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _start_worker(parent: int, devices: "multiprocessing.SimpleQueue") -> None:
    """Prepare a worker: its device, quiet libraries, and an end when the campaign's process is gone."""
    import datasets
    import torch
    import transformers

    if torch.cuda.device_count() > 1:
        os.environ["CUDA_VISIBLE_DEVICES"] = str(devices.get())
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore")
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - Trainer prints its log, of several cells at once
    logging.basicConfig(level=logging.ERROR)
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    gc.freeze()  # what was imported, through which every full collection would look: one or more a cell, 0.3 s each


def _watch(parent: int) -> None:
    """End this process when its parent was killed: nobody waits for the cell, and a new campaign may run it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
