"""A program for the jobs of a queue, and a Slurm in whose queue everything stays."""

import os
from pathlib import Path

import pytest

PROGRAM = """
import os, signal, sys, time
from pathlib import Path

place, what = Path(sys.argv[1]), sys.argv[2]
print("this is", what, flush=True)
if what == "wrong":
    print("error: it is wrong", flush=True)
    sys.exit(1)
if what == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if what == "long" and not (place / "saved").exists():
    def save(*_):
        (place / "saved").touch()
        print("stopped", flush=True)
        sys.exit(143)
    signal.signal(signal.SIGTERM, save)
    (place / "begun").touch()
    time.sleep(60)
if what == "late":
    time.sleep(0.5)
(place / what).write_text(str(time.time()))
"""
SBATCH = """#!/bin/sh
number=$(($(ls {place} | grep -c '[.]sh$') + 1))
cp "$1" {place}/$number.sh
test ! -f {place}/refused || {{ cat {place}/refused >&2; exit 1; }}
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
test "$last" || echo "$number PENDING" >> {place}/queue
test ! "$last" || seq 0 "$last" | sed "s/.*/${{number}}_& PENDING/" >> {place}/queue
echo "Submitted batch job $number"
"""
SQUEUE = """#!/bin/sh
echo "$@" > {place}/question
cat {place}/queue
"""


def program(folder: Path) -> Path:
    path = folder / "program.py"
    path.write_text(PROGRAM)
    return path


class Slurm:
    """Takes every job, and begins none.

    Args:
        place: for what it is asked.
        patch: puts it before any other.
    """

    def __init__(self, place: Path, patch: pytest.MonkeyPatch):
        self.place = place
        (place / "bin").mkdir(parents=True)
        for name, text in {"sbatch": SBATCH, "squeue": SQUEUE, "srun": "", "sacct": "#!/bin/sh\nexit 1\n"}.items():
            path = place / "bin" / name
            path.write_text(text.format(place=place))
            path.chmod(0o755)
        self.has()
        patch.setenv("PATH", f"{place / 'bin'}{os.pathsep}{os.environ['PATH']}")

    def has(self, *lines: str) -> None:
        """What `squeue` says."""
        (self.place / "queue").write_text("".join(f"{line}\n" for line in lines))

    def refuses(self, reason: str) -> None:
        (self.place / "refused").write_text(reason)

    def asked(self) -> list[str]:
        """The scripts, in the order in which they came."""
        return [self.place.joinpath(f"{number}.sh").read_text() for number in range(1, self.count() + 1)]

    def count(self) -> int:
        return len(list(self.place.glob("*.sh")))
