"""A process of `benchmarks.against`: runs commands of one revision, and waits at marks until it is told to go on.

    python benchmarks/marked_commands.py ROOT STEPS COMMAND ...

ROOT is the revision's folder, and a COMMAND the options of its `main_classification.py with`. Marks are: before the
first command, behind each, and with STEPS > 0 behind the first step of an optimizer and every STEPS further ones. At a
mark it writes the peak of its resident memory in KiB and reads a line; what the commands print goes to standard error.

It runs in a revision's place, so it uses what does not move between revisions: the entry, and torch's optimizers.
"""

import os
import shlex
import sys
from pathlib import Path

from torch.optim.optimizer import register_optimizer_step_post_hook


class Marks:
    """The conversation with the process that measures."""

    def __init__(self, steps: int):
        self.steps = steps
        self.num_taken = 0
        self.answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)

    def wait(self) -> None:
        self.answers.write(f"{peak_memory()}\n")
        self.answers.flush()
        if not sys.stdin.readline():  # nobody is there any more
            os._exit(1)

    def after_step(self, *_: object) -> None:
        if self.num_taken % self.steps == 0:
            self.wait()
        self.num_taken += 1


def peak_memory() -> int:
    """The largest resident set of this process in KiB; `getrusage` would count what started it as well."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))


def main(root: str, steps: str, *commands: str) -> int:
    marks = Marks(int(steps))
    if marks.steps:
        register_optimizer_step_post_hook(marks.after_step)
    sys.path[0] = root  # instead of this file's folder
    import main_classification

    marks.wait()
    for command in commands:
        sys.argv = ["main_classification.py", "with", *shlex.split(command)]  # what a run records as its command
        status = main_classification.main(sys.argv)
        if status:
            return status
        marks.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
