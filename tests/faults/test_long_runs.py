"""A long run neither grows nor slows: memory, open files, threads, and the time of an epoch."""

import os
import threading
import time
from pathlib import Path

import pytest
from digits_tools import fewer_digits
from fault_tools import FAST, run_here, short_and_long

from algorithms.train import Training

ALLOWED_GROWTH_MIB = 16  # an epoch that kept one batch of activations would take more
ALLOWED_FILES = ALLOWED_THREADS = 2  # the recorder's thread of every few seconds, and the file that it writes
NUM_TIMED = 300
ALLOWED_SLOWDOWN = 1.3  # between the fastest epochs of the first and the last third: whoever is beside them delays some
HISTORY_S = 0.15e-3  # an epoch writes the figures of all before it: so much for each of them


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.fixture
def epochs(tmp_path, monkeypatch):
    """`epochs(number)` trains so many; (seconds of processor time, MiB, open files, threads) after each."""
    seen = []
    run_epoch = Training._run_epoch

    def watched(job: Training, epoch: int) -> None:
        start = time.process_time()
        run_epoch(job, epoch)
        files = len(list(Path("/proc/self/fd").iterdir()))
        seen.append((time.process_time() - start, resident_mib(), files, threading.active_count()))

    def train(number: int) -> list[tuple[float, ...]]:
        monkeypatch.setattr(Training, "_run_epoch", watched)
        words = ["config=digits.RN8", *FAST, f"epochs={number}", "milestones=[]", "learning_rate=0.01"]
        with fewer_digits(64, 32):
            run_here(*words, localpath=tmp_path)
        assert len(seen) == number
        return list(zip(*seen, strict=True))

    return train


@short_and_long("num_epochs", 15, 300)
def test_a_long_run_takes_no_more_as_it_goes_on(num_epochs, epochs):
    _, memory, files, threads = epochs(num_epochs)
    third = num_epochs // 3
    warm = num_epochs // 5  # what is kept once, allocator caches for instance, has been taken by then
    assert max(memory[-third:]) - memory[warm] < ALLOWED_GROWTH_MIB
    assert max(files[-third:]) - files[warm] <= ALLOWED_FILES
    assert max(threads[-third:]) - threads[warm] <= ALLOWED_THREADS


@pytest.mark.slow  # of few epochs even the fastest is delayed by whoever runs beside them
def test_a_long_run_is_as_fast_as_it_began(epochs):
    seconds, *_ = epochs(NUM_TIMED)
    third = NUM_TIMED // 3
    first, last = min(seconds[:third]), min(seconds[-third:])
    assert last < ALLOWED_SLOWDOWN * first + HISTORY_S * (NUM_TIMED - third), (first, last)
