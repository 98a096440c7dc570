"""Work spread over processes of this machine, which end when the one that asked has ended, however that came."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from typing import Any, TypeVar

import psutil

Key = TypeVar("Key", bound=Hashable)
Work = TypeVar("Work")
Result = TypeVar("Result")


def as_they_come(
    work: Callable[[Work], Result], jobs: Mapping[Key, Work], processes: int, *, gpus: int = 0
) -> Iterator[tuple[Key, Result]]:
    """What ``work`` makes of each job, in processes of their own, in the order in which they are done.

    Closing the iterator begins no further job. Of several ``gpus`` each process sees one, dealt out in turn.

    Raises:
        BrokenProcessPool: one of them was killed, as for want of memory.
    """
    if not jobs:
        return
    others = set(multiprocessing.active_children())
    spawning = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(
        min(processes, len(jobs)),
        mp_context=spawning,
        initializer=_begin,
        initargs=(os.getpid(), gpus, spawning.Value("i", 0)),
    )
    try:
        left = iter(jobs.items())  # the pool gets no more than it can begin: what it has taken, it makes to the end
        running = {pool.submit(work, job): key for key, job in itertools.islice(left, processes)}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                running |= {pool.submit(work, job): key for key, job in itertools.islice(left, 1)}
                yield running.pop(future), future.result()
    except KeyboardInterrupt:  # nobody wants to wait for what has been begun
        for worker in set(multiprocessing.active_children()) - others:
            worker.terminate()
        raise
    finally:
        pool.shutdown()


def in_processes(
    work: Callable[[Work], Result],
    jobs: Mapping[Key, Work],
    processes: int,
    tell: Callable[[int, int], object],
) -> dict[Key, Result]:
    """The same all together; ``tell`` hears how many are done."""
    found = {}
    for done, (key, result) in enumerate(as_they_come(work, jobs, processes), start=1):
        found[key] = result
        tell(done, len(jobs))
    return found


def _begin(asker: int, gpus: int, begun: Any) -> None:
    """In a new process, before torch looks for GPUs. ``begun``: how many have begun before it, shared by all."""
    end_with(asker)
    if gpus > 1:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        with begun.get_lock():
            number = begun.value % gpus
            begun.value += 1
        os.environ["CUDA_VISIBLE_DEVICES"] = seen[number] if len(seen) >= gpus else str(number)


def end_with(asker: int) -> None:
    """From now on this process ends within a second of its parent, whose number is ``asker``.

    A worker of a pool waits for ever where its parent was killed.
    """

    def watch() -> None:
        while psutil.pid_exists(asker) and (os.name == "nt" or os.getppid() == asker):
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
