"""What a study leaves to a cluster's queue, by submitit: arrays of jobs, each a command, behind those that they need.

    <localpath>/studies/jobs.json     of every job that a study has asked for: what it makes, its number, its output
    <localpath>/studies/jobs/         what submitit keeps: scripts, and what Slurm and submitit themselves say

Several studies know of each other's jobs by these, so that nothing is in the queue twice. Things that need the same
are one array, which begins when what they need has ended, well or not: a run that lacks something then says so itself.

Whether a job waits or runs, `squeue` says, which knows of a job from the moment it is there and needs no accounting.
With `cluster=local` jobs are processes of this machine; what they need is waited for before they are started.
"""

import io
import logging
import os
import shlex
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from config.command_lines import read_value
from config.options import Study
from engine.queued import QueuedCommand, has_begun, last_error
from engine.records import ROOT, log, now
from results.studies import QUEUED, RUNNING
from storage.documents import first_line
from storage.tensor_files import load_json, save_json

if TYPE_CHECKING:
    import submitit

JOBS, FILES = "jobs.json", "jobs"
SLURM, LOCAL = "slurm", "local"
REQUIREMENTS = "requirements-cluster.txt"
DEFAULT_MINUTES = 240  # of a job; one that takes longer goes on behind others
MOST_TIMEOUTS = 1000  # of a job: each has brought it further
LARGEST_ARRAY = 1000  # of Slurm, unless it is set up for more
OF_ALL_QUEUES = (  # parameters that submitit has for any; the others are Slurm's
    "name", "timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node", "stderr_to_stdout",
)  # fmt: skip
OF_ONE_PROCESS = ("nodes", "tasks_per_node", "ntasks_per_node", "ntasks")
GPUS = ("gpus_per_node", "gpus_per_task", "num_gpus", "gpus")
OF_STUDY = {
    "array_parallelism": "jobs= says it",
    "dependency": "the study says it",
    "array": "the study says it",
    "time": "timeout_min= says it, in minutes",
}
LISTS = ("setup", "teardown", "srun_args")  # of lines or words
WAITING = ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "CONFIGURING")  # states of Slurm's
ENDED_BY_SLURM = ("CANCELLED", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "TIMEOUT", "DEADLINE")  # for no fault of a run
QUEUE_SECONDS = 60  # that `squeue` has for an answer
POLL_SECONDS = 0.1
START_SECONDS = 0.5  # in which a process that is being started has its command line


@dataclass(frozen=True)
class Item:
    """Something that a job makes.

    Args:
        key: the same whenever it is asked for.
        title: for messages.
        command: its line, `python FILE ...`, which goes on where it was broken off.
        output: the file of what it prints.
        after: keys of what it needs.
    """

    key: str
    title: str
    command: str
    output: Path
    after: frozenset[str]


class Queue:
    """Jobs that studies below one folder have asked for.

    Args:
        options: of the study.
        folder: <localpath>/studies.

    Attributes:
        states: QUEUED or RUNNING, of what has not ended, by keys.

    Raises:
        ValueError: there is no submitit, no Slurm, or no such parameter.
    """

    def __init__(self, options: Study, folder: Path):
        self.kind, self.num_jobs = options.cluster, options.jobs
        self.folder, self.states = folder, dict[str, str]()
        self.parameters = _parameters(options.cluster_options)
        self.submitit = _submitit()
        with tempfile.TemporaryDirectory() as nowhere:
            self._executor(nowhere)
        self.records: dict[str, dict[str, str]] = {}
        self.look()

    def look(self) -> None:
        """Ask how the jobs are."""
        path = self.folder / JOBS
        self.records = load_json(path) if path.is_file() else {}
        left = {
            key: record for key, record in self.records.items() if not self._job(record).paths.result_pickle.exists()
        }
        of_slurm = _of_slurm() if any(record["cluster"] == SLURM for record in left.values()) else {}
        found = {
            key: of_slurm.get(record["job"]) if record["cluster"] == SLURM else self._of_process(record)
            for key, record in left.items()
        }
        self.states = {key: state for key, state in found.items() if state}

    def error(self, key: str) -> str | None:
        """What the last job of something has failed by; None where it has not, or there was none."""
        record = self.records.get(key)
        if record is None:
            return None
        output, before = Path(record["output"]), record["output_before"]
        if (error := last_error(output, before)) or key in self.states:
            return error
        job = self._job(record)
        if job.paths.result_pickle.exists():
            return None
        state = self._ended_as(record)
        ended = f" as {state}" if state else ""
        if has_begun(output, before):
            return f"job {record['job']} was ended{ended} while its command ran; see {output}"
        return f"job {record['job']} has ended{ended} before its command; see {job.paths.stderr}"

    def _ended_as(self, record: dict[str, Any]) -> str:
        """The state that Slurm's accounting says; "" where it does not know."""
        state = self._job(record).state if record["cluster"] == SLURM else "UNKNOWN"
        return "" if state == "UNKNOWN" else state

    def failures(self, key: str) -> int:
        """How many jobs one behind the other have failed by themselves: their command had begun, what they needed was
        there, and Slurm did not end them. Without the file of what they printed there are none.
        """
        record = self.records.get(key)
        if record is None or not (output := Path(record["output"])).is_file():
            return 0
        before, start = int(record["failures"]), record["output_before"]
        if key in self.states or not has_begun(output, start) or self._lacked(record):
            return before
        if not self.error(key):
            return 0
        is_own = last_error(output, start) or not self._ended_as(record).startswith(ENDED_BY_SLURM)
        return before + 1 if is_own else before

    def _lacked(self, record: dict[str, Any]) -> bool:
        """Whether something that a job needed has failed: then another job has made it since, or none."""
        for key, (folder, job) in record["needed"].items():
            known = self.records.get(key)
            if known is None or (known["folder"], known["job"]) != (folder, job) or self.error(key):
                return True
        return False

    def lines(self) -> Iterator[str]:
        """What waits and what runs."""
        for key, state in self.states.items():
            record = self.records[key]
            yield f"{record['title']}: {state}, job {record['job']}; {record['output']}"

    def submit(self, items: Iterable[Item]) -> None:
        """Give jobs to the queue, those first that others need; what is there already stays.

        Raises:
            ValueError: the queue takes none; what it has taken before is known. Or a job of another kind of queue,
                which this one cannot wait for, makes what one needs.
        """
        left = {item.key: item for item in items if item.key not in self.states}
        for item in left.values():
            self._check_kind(item)
        while left:
            groups: dict[frozenset[str], list[Item]] = {}
            for item in left.values():
                if not item.after & left.keys():
                    groups.setdefault(item.after.intersection(self.states), []).append(item)
            for after, group in groups.items():
                for start in range(0, len(group), LARGEST_ARRAY):
                    self._submit(group[start : start + LARGEST_ARRAY], after)
            left = {key: item for key, item in left.items() if key not in self.states}

    def _check_kind(self, item: Item) -> None:
        for key in sorted(item.after.intersection(self.states)):
            record = self.records[key]
            if record["cluster"] != self.kind:
                raise ValueError(
                    f"cluster={self.kind} cannot wait for job {record['job']} of cluster={record['cluster']}, which "
                    f"makes what {item.title} needs ({record['title']}); give the command again when it has ended"
                )

    def _submit(self, items: list[Item], after: frozenset[str]) -> None:
        if self.kind == SLURM:
            jobs = sorted({self.records[key]["job"] for key in after})
            self._note(items, self._given(items, jobs))
            log.info("submitted: %s%s", self._told(items), f", behind {', '.join(jobs)}" if jobs else "")
            return
        while any(map(self._runs, after)):
            time.sleep(POLL_SECONDS)
        for item in items:
            while self.num_jobs is not None and sum(map(self._runs, self.states)) >= self.num_jobs:
                time.sleep(POLL_SECONDS)
            self._note([item], self._given([item], []))
            log.info("begun: %s", self._told([item]))

    def _given(self, items: list[Item], after: list[str]) -> tuple[Path, list[str]]:
        """The folder of new jobs, and their numbers."""
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        number = 1 + max((int(path.name) for path in (self.folder / FILES).glob("[0-9]*")), default=0)
        folder = self.folder / FILES / str(number)  # of this machine a number of a process comes again
        commands = [QueuedCommand(shlex.split(item.command)[1:], str(item.output.absolute())) for item in items]
        commands = [QueuedCommand([str(ROOT / each.words[0]), *each.words[1:]], each.output) for each in commands]
        try:
            with _importable(), redirect_stderr(io.StringIO()):  # of sbatch, which the error has too
                return folder, [job.job_id for job in self._executor(folder, after).submit_array(commands)]
        except (FailedJobError, FailedSubmissionError, OSError) as error:
            raise ValueError(f"cluster={self.kind} takes no job: {' '.join(str(error).split())}") from error

    def _note(self, items: list[Item], given: tuple[Path, list[str]]) -> None:
        folder, jobs = given
        for item, job in zip(items, jobs, strict=True):
            output = item.output.absolute()
            self.records[item.key] = {
                "job": job,
                "cluster": self.kind,
                "folder": folder.name,
                "submitted": now(),
                "title": item.title,
                "output": str(output),
                "output_before": output.stat().st_size if output.is_file() else 0,
                "needed": {
                    key: (self.records[key]["folder"], self.records[key]["job"])
                    for key in sorted(item.after & self.records.keys())
                },
                "failures": self.failures(item.key),
            }
            self.states[item.key] = QUEUED if self.kind == SLURM else RUNNING
        save_json(self.folder / JOBS, self.records)

    def _told(self, items: list[Item]) -> str:
        first, last = (self.records[item.key]["job"] for item in (items[0], items[-1]))
        if len(items) == 1:
            return f"{items[0].title}, job {first}"
        return f"{len(items)} jobs, {first} to {last}: {items[0].title}, ..., {items[-1].title}"

    def _runs(self, key: str) -> bool:
        """Whether a job of this machine goes on."""
        record = self.records[key]
        if record["cluster"] != LOCAL or self._job(record).paths.result_pickle.exists():
            return False
        return self._of_process(record) is not None

    def _of_process(self, record: dict[str, Any]) -> str | None:
        """RUNNING where the number of a job of this machine is still that of its process."""
        try:
            command = _command_of(record["job"])
        except OSError:
            return None
        folder = os.fsencode((self.folder / FILES / record["folder"]).absolute())
        is_own = b"submitit.local" in command and command.rstrip(b"\0'").endswith(folder)  # a shell may quote it
        return RUNNING if is_own else None

    def _executor(self, folder: Path | str, after: Iterable[str] = ()) -> "submitit.AutoExecutor":
        given = {"name": "letKD", "timeout_min": DEFAULT_MINUTES} | self.parameters
        path = f"export PYTHONPATH={shlex.quote(str(ROOT))}${{PYTHONPATH:+:$PYTHONPATH}}"
        given["slurm_setup"] = [path, *given.get("slurm_setup", [])]
        given["slurm_additional_parameters"] = {"requeue": True} | given.get("slurm_additional_parameters", {})
        given["slurm_array_parallelism"] = self.num_jobs or LARGEST_ARRAY
        if after:
            given["slurm_dependency"] = f"afterany:{':'.join(after)}"
        timeouts = {f"{kind}_max_num_timeout": MOST_TIMEOUTS for kind in (SLURM, LOCAL)}
        try:
            executor = self.submitit.AutoExecutor(folder, cluster=self.kind, **timeouts)
            executor.update_parameters(**given)
        except (NameError, ValueError, AssertionError, TypeError) as error:
            raise ValueError(f"cluster_options: {first_line(error)}") from error
        except RuntimeError as error:
            raise ValueError("cluster=slurm: there is no Slurm here; start it where sbatch and srun are") from error
        return executor

    def _job(self, record: dict[str, Any]) -> "submitit.Job[None]":
        kind = self.submitit.SlurmJob if record["cluster"] == SLURM else self.submitit.LocalJob
        return kind(self.folder / FILES / record["folder"], record["job"])


def _submitit() -> ModuleType:
    try:
        import submitit
    except ModuleNotFoundError as error:
        raise ValueError(f"cluster= needs submitit; install it: python -m pip install -r {REQUIREMENTS}") from error
    logging.getLogger("submitit").setLevel(logging.ERROR)  # without accounting it would warn at every question
    return submitit


def _parameters(texts: list[str]) -> dict[str, Any]:
    """Parameters by the names that submitit's executor for any queue has for them.

    Raises:
        ValueError: one has no value, stands there twice, or is not for the jobs of a study.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, _, written = (part.strip() for part in text.partition("="))
        if not key.isidentifier() or not written:
            raise ValueError(
                f"cluster_options={text!r} must be parameters with values, like partition=gpu timeout_min=240"
            )
        value = read_value(written)
        own = key.removeprefix("slurm_").removeprefix("local_")
        if own in LISTS:
            value = value if isinstance(value, list) else [value if isinstance(value, str) else written]
        if mistake := _mistake(own, value):
            raise ValueError(f"cluster_options={text!r}: {mistake}")
        name = key if key in OF_ALL_QUEUES or key.startswith(("slurm_", "local_")) else f"slurm_{key}"
        if name in found:
            raise ValueError(f"cluster_options={texts} has {key} twice; leave out one of them")
        found[name] = value
    return found


def _mistake(name: str, value: Any) -> str | None:
    """Why a job of a study cannot have a parameter; None where it can, as far as it is known here."""
    if name == "additional_parameters":
        return _mistake_among(value)
    if name in OF_STUDY:
        return f"{OF_STUDY[name]}; leave it out"
    is_number = isinstance(value, int) and not isinstance(value, bool)
    several = name in OF_ONE_PROCESS and not (is_number and value == 1)
    if several or (name in GPUS and not (is_number and value in (0, 1))) or (name == "gres" and _num_gpus(value) > 1):
        return "a run of a study is one process, with one GPU at most"
    if name == "signal_delay_s" and not (is_number and value > 0):
        return "it must be a whole number of seconds above 0"
    if name in LISTS and not all(isinstance(line, str) for line in value):
        return "it must be a text, or a list of texts"
    return None


def _mistake_among(value: Any) -> str | None:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        return "it must be a dictionary of what sbatch takes, like {'mail-type': 'END'}"
    found = ((key, _mistake(key.replace("-", "_"), part)) for key, part in value.items())
    return next((f"{key}: {mistake}" for key, mistake in found if mistake), None)


def _num_gpus(gres: Any) -> int:
    """Of generic resources as Slurm writes them: `gpu`, `gpu:2`, `gpu:a100:2`."""
    parts = [part.partition("(")[0].split(":") for part in str(gres).split(",")]
    return sum(int(part[-1]) if part[-1].isdecimal() else 1 for part in parts if part[0].strip() == "gpu")


@contextmanager
def _importable() -> Iterator[None]:
    """Let processes that are started here find this code, wherever they are started from."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before


def _of_slurm() -> dict[str, str]:
    """What waits and what runs, by the numbers of jobs, those of arrays as 12_3.

    Raises:
        ValueError: Slurm does not answer.
    """
    command = ["squeue", "--noheader", "--all", "--array", "--me", "--format=%i %T"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=QUEUE_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        reason = (getattr(error, "stderr", None) or str(error)).strip()
        raise ValueError(f"Slurm does not say which jobs are in its queue ({first_line(reason)}); try again") from error
    states = dict(line.split() for line in answer.splitlines())
    return {job: QUEUED if state in WAITING else RUNNING for job, state in states.items()}


def _command_of(job: str) -> bytes:
    """The command line of a process of this machine; empty where it has none, as one that has ended and is not reaped.

    One that is just being started has none for a moment, which is waited for.

    Raises:
        OSError: there is no such process.
    """
    place = Path("/proc", job)
    deadline = time.monotonic() + START_SECONDS
    while not (command := (place / "cmdline").read_bytes()):
        has_ended = (place / "stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
        if has_ended or time.monotonic() > deadline:
            break
        time.sleep(0.001)
    return command
