"""A long run neither grows nor slows: memory, open files, threads, and the time of an epoch."""

import os
import threading
import time
from pathlib import Path

from digits_tools import fewer_digits
from fault_tools import FAST, run_here, short_and_long

from algorithms.train import Training

ALLOWED_GROWTH_MIB = 16  # an epoch that kept one batch of activations would take more
ALLOWED_FILES = ALLOWED_THREADS = 2  # the recorder's thread of every few seconds, and the file that it writes
ALLOWED_SLOWDOWN = 1.3  # between the fastest epochs of the first and the last third: whoever is beside them delays some
HISTORY_S = 0.15e-3  # an epoch writes the figures of all before it: so much for each of them


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@short_and_long("num_epochs", 15, 300)
def test_a_long_run_stays_as_it_began(num_epochs, tmp_path, monkeypatch):
    seen = []

    def watched(job: Training, epoch: int) -> None:
        start = time.process_time()
        run_epoch(job, epoch)
        files = len(list(Path("/proc/self/fd").iterdir()))
        seen.append((time.process_time() - start, resident_mib(), files, threading.active_count()))

    run_epoch = Training._run_epoch
    monkeypatch.setattr(Training, "_run_epoch", watched)
    words = ["config=digits.RN8", *FAST, f"epochs={num_epochs}", "milestones=[]", "learning_rate=0.01"]
    with fewer_digits(64, 32):
        run_here(*words, localpath=tmp_path)
    seconds, memory, files, threads = zip(*seen, strict=True)
    assert len(seen) == num_epochs
    third = num_epochs // 3
    warm = num_epochs // 5  # what is kept once, allocator caches for instance, has been taken by then
    assert max(memory[-third:]) - memory[warm] < ALLOWED_GROWTH_MIB
    assert max(files[-third:]) - files[warm] <= ALLOWED_FILES
    assert max(threads[-third:]) - threads[warm] <= ALLOWED_THREADS
    first, last = min(seconds[:third]), min(seconds[-third:])
    assert last < ALLOWED_SLOWDOWN * first + HISTORY_S * (num_epochs - third), (first, last)
