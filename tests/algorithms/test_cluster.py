"""Jobs in a queue: each once, those first that others need, and what has become of them."""

import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cluster_tools import Slurm, program

from algorithms.cluster import JOBS, Item, Queue
from algorithms.study_plan import _listed
from config.options import Study
from storage.tensor_files import load_json

pytest.importorskip("submitit")


def options(kind: str, jobs: int | None = None, given: str = "") -> Study:
    return Study(cluster=kind, jobs=jobs, cluster_options=given.split(";") if given else [])


def item(folder: Path, what: str, *after: str) -> Item:
    command = f"python {program(folder)} {folder} {what}"
    return Item(what, f"the {what}", command, folder / f"output/{what}.txt", frozenset(after))


def queue(folder: Path, kind: str, **own) -> Queue:
    return Queue(options(kind, **own), folder / "studies")


def ended(found: Queue, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while found.states:
        assert time.monotonic() < deadline
        time.sleep(0.05)
        found.look()


# --- on this machine, with submitit's own queue ----------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _found(monkeypatch):
    """Processes that are started find what this one has found."""
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))


def test_what_others_need_is_made_first_and_errors_are_kept(tmp_path):
    found = queue(tmp_path, "local")
    found.submit([item(tmp_path, "right", "late", "wrong"), item(tmp_path, "late"), item(tmp_path, "wrong")])
    ended(found)
    assert float((tmp_path / "late").read_text()) < float((tmp_path / "right").read_text())
    again = queue(tmp_path, "local")
    assert again.states == {} and [again.failures(key) for key in ("right", "wrong", "other")] == [0, 1, 0]
    assert [again.error(key) for key in ("right", "late", "wrong", "other")] == [None, None, "it is wrong", None]


def test_what_is_there_already_is_not_submitted_again(tmp_path):
    queue(tmp_path, "local").submit([item(tmp_path, "late")])
    again = queue(tmp_path, "local")
    (line,) = again.lines()
    assert line.startswith("the late: running, job ") and line.endswith(f"; {tmp_path / 'output/late.txt'}")
    again.submit([item(tmp_path, "late")])
    assert again.records["late"]["folder"] == "1"
    ended(again)


def test_so_many_at_once(tmp_path):
    found = queue(tmp_path, "local", jobs=1)
    found.submit([item(tmp_path, "late"), item(tmp_path, "right")])
    ended(found)
    assert float((tmp_path / "late").read_text()) < float((tmp_path / "right").read_text())


# --- with a Slurm that only notes ------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Slurm:
    return Slurm(tmp_path / "slurm", monkeypatch)


def flags(script: str) -> dict[str, str]:
    return dict(re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", script, flags=re.MULTILINE))


def test_equal_needs_are_an_array_behind_what_it_needs(slurm, tmp_path):
    found = queue(tmp_path, "slurm", jobs=2, given="partition=gpu;gpus_per_node=1;mem_gb=8")
    found.submit([item(tmp_path, "a"), item(tmp_path, "b", "a"), *(item(tmp_path, key, "a", "b") for key in "cde")])
    first, second, third = map(flags, slurm.asked())
    assert (first["partition"], first["gpus-per-node"], first["time"], first["mem"]) == ("gpu", "1", "240", "8GB")
    assert "dependency" not in first and "array" not in first and "requeue" in first
    assert second["dependency"] == "afterany:1"
    assert third["dependency"] == "afterany:1:2" and third["array"] == "0-2%2"
    slurm.has("1 RUNNING", "3_0 PENDING", "3_1 REQUEUED", "3_2 COMPLETING")
    found.look()
    assert found.states == {"a": "running", "c": "queued", "d": "queued", "e": "running"}
    assert {key: record["job"] for key, record in found.records.items()} == {
        "a": "1", "b": "2", "c": "3_0", "d": "3_1", "e": "3_2"
    }  # fmt: skip


def test_what_is_in_the_queue_is_waited_for_and_what_has_gone_is_not(slurm, tmp_path):
    found = queue(tmp_path, "slurm")
    found.submit([item(tmp_path, "a"), item(tmp_path, "b")])
    slurm.has("1_0 RUNNING")
    found.look()
    found.submit([item(tmp_path, "a"), item(tmp_path, "c", "a", "b")])
    *_, last = map(flags, slurm.asked())
    assert slurm.count() == 2 and last["dependency"] == "afterany:1_0"
    assert found.error("b") == (
        f"job 1_1 has ended before its command; see {tmp_path / 'studies/jobs/1/1_1_0_log.err'}"
    )


def said(found: Queue, key: str, *lines: str) -> None:
    """What a job has printed; it has ended then."""
    path = Path(found.records[key]["output"])
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as output:
        output.writelines(f"{line}\n" for line in lines)


def test_a_job_that_was_ended_while_its_command_ran_does_not_say_it_has_not_begun(slurm, tmp_path):
    found = queue(tmp_path, "slurm")
    found.submit([item(tmp_path, "a")])
    slurm.has()
    said(found, "a", "$ python a", "epoch 1")
    found.look()
    assert found.error("a") == f"job 1 was ended while its command ran; see {tmp_path / 'output/a.txt'}"
    found.submit([item(tmp_path, "a")])
    slurm.has()
    found.look()
    assert found.error("a").startswith("job 2 has ended before its command; see ")


def test_failures_are_those_of_the_job_itself(slurm, tmp_path):
    """Those behind a teacher that has failed, and those before the command, are not; a removed output clears them."""
    found, items = queue(tmp_path, "slurm"), [item(tmp_path, "teacher"), item(tmp_path, "run", "teacher")]

    def again(*given: Item, **printed: str) -> int:
        found.submit(given)
        slurm.has()
        for key, line in printed.items():
            said(found, key, "$ python", line)
        found.look()
        return found.failures("run")

    assert again(*items, teacher="error: a full disk", run="error: no teacher") == 0
    assert again(*items, teacher="error: a full disk", run="error: no teacher") == 0
    assert found.failures("teacher") == 2
    shutil.rmtree(tmp_path / "output")
    assert again(*items, teacher="error: a full disk", run="error: no teacher") == 0
    assert again(items[1], run="error: nan") == 0  # the teacher is still missing
    end_well(found, slurm, items[0])
    assert again(items[1], run="error: nan") == 1
    assert again(items[1]) == 1  # ended before its command
    assert again(items[1], run="error: nan") == 2
    Path(found.records["run"]["output"]).unlink()
    assert found.failures("run") == 0 and again(items[1], run="error: nan") == 1


def test_what_slurm_ends_is_no_failure_of_the_run(slurm, tmp_path, monkeypatch):
    import submitit

    found = queue(tmp_path, "slurm")
    for number, (state, failures) in enumerate([("OUT_OF_MEMORY", 1), ("CANCELLED by 7", 1), ("TIMEOUT", 1)], 1):
        found.submit([item(tmp_path, "a")])
        slurm.has()
        said(found, "a", "$ python a")
        found.look()
        monkeypatch.setattr(submitit.SlurmJob, "state", state)
        assert found.error("a").startswith(f"job {number} was ended as {state} while its command ran; see ")
        assert found.failures("a") == failures


def end_well(found: Queue, slurm: Slurm, given: Item) -> None:
    found.submit([given])
    slurm.has()
    said(found, given.key, "$ python")
    path = found._job(found.records[given.key]).paths.result_pickle
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    found.look()


def test_a_job_of_another_kind_of_queue_cannot_be_waited_for(slurm, tmp_path):
    queue(tmp_path, "slurm").submit([item(tmp_path, "a")])
    message = (
        r"^cluster=local cannot wait for job 1 of cluster=slurm, which makes what the b needs \(the a\); "
        r"give the command again when it has ended$"
    )
    with pytest.raises(ValueError, match=message):
        queue(tmp_path, "local").submit([item(tmp_path, "b", "a"), item(tmp_path, "c")])
    assert load_json(tmp_path / "studies" / JOBS).keys() == {"a"}


def test_a_process_of_another_folder_is_another_job(tmp_path):
    found = queue(tmp_path, "local")
    found.submit([item(tmp_path, "late")])
    record = found.records["late"]
    assert found._of_process(record) == "running" and found._of_process(record | {"folder": "11"}) is None
    ended(found)


def test_hidden_partitions_are_asked_too(slurm, tmp_path):
    found = queue(tmp_path, "slurm")
    found.submit([item(tmp_path, "a")])
    found.look()
    assert "--all" in (slurm.place / "question").read_text().split()


def test_what_a_job_may_ask_for(slurm, tmp_path):
    given = "gpus_per_node=0;setup=module load cuda;gres=gpu:a100:1,shard:4;additional_parameters={'nice': 5}"
    queue(tmp_path, "slurm", given=f"{given};signal_delay_s=120").submit([item(tmp_path, "a")])
    (script,) = slurm.asked()
    asked = flags(script)
    assert (asked["gpus-per-node"], asked["gres"], asked["nice"]) == ("0", "gpu:a100:1,shard:4", "5")
    assert asked["signal"] == "USR2@120" and "requeue" in asked and "\nmodule load cuda\n" in script


@pytest.mark.parametrize(
    ("setup", "lines"),
    [
        ("'module load cuda'", ["module load cuda"]),
        ('"export OMP_NUM_THREADS=4"', ["export OMP_NUM_THREADS=4"]),
        ('["module load cuda", "export A=4 B=5"]', ["module load cuda", "export A=4 B=5"]),
        ("1", ["1"]),
    ],
)
def test_lines_before_a_command_are_those_that_were_written(setup, lines, slurm, tmp_path):
    """As `study` reads them, in quotes or brackets between other parameters."""
    others = "comment='a b=c' additional_parameters={'nice': 5}"
    given = _listed("cluster_options", f"partition=gpu setup={setup} {others}")
    queue(tmp_path, "slurm", given=";".join(given)).submit([item(tmp_path, "a")])
    (script,) = slurm.asked()
    _, _, before = script.rpartition("export PYTHONPATH=")[2].partition("\n")
    assert before.partition("\n\n")[0].splitlines() == lines
    asked = flags(script)
    assert (asked["partition"], asked["comment"], asked["nice"]) == ("gpu", shlex.quote("a b=c"), "5")


def test_long_arrays_are_several(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr("algorithms.cluster.LARGEST_ARRAY", 2)
    queue(tmp_path, "slurm").submit([item(tmp_path, key) for key in "abc"])
    assert [flags(script).get("array") for script in slurm.asked()] == ["0-1%2", None]


def test_what_was_taken_before_a_refusal_is_known(slurm, tmp_path):
    found = queue(tmp_path, "slurm")
    found.submit([item(tmp_path, "a")])
    slurm.refuses("sbatch: error: Batch job submission failed: Invalid account")
    with pytest.raises(ValueError, match=r"^cluster=slurm takes no job: sbatch: error: .*Invalid account$"):
        found.submit([item(tmp_path, "b", "a")])
    assert load_json(tmp_path / "studies" / JOBS).keys() == {"a"}


def test_a_slurm_that_does_not_answer_is_named(slurm, tmp_path):
    queue(tmp_path, "slurm").submit([item(tmp_path, "a")])
    (slurm.place / "queue").unlink()
    with pytest.raises(ValueError, match=r"^Slurm does not say which jobs are in its queue \(.*; try again$"):
        queue(tmp_path, "slurm")


# --- mistakes --------------------------------------------------------------------------------------------------------

MISTAKES = {
    "no value": ("partition", "cluster_options='partition' must be parameters with values, like partition=gpu"),
    "twice": ("partition=a;slurm_partition=b", "has slurm_partition twice; leave out one of them"),
    "several tasks": ("tasks_per_node=2", "a run of a study is one process, with one GPU at most"),
    "several machines": ("nodes=2", "a run of a study is one process, with one GPU at most"),
    "several GPUs": ("gpus_per_node=8", "a run of a study is one process, with one GPU at most"),
    "at once": ("array_parallelism=2", "jobs= says it; leave it out"),
    "needs": ("dependency=singleton", "the study says it; leave it out"),
    "more GPUs": ("num_gpus=2", "a run of a study is one process, with one GPU at most"),
    "GPUs as Slurm says it": ("gres=gpu:a100:4", "a run of a study is one process, with one GPU at most"),
    "tasks here": ("local_tasks_per_node=2", "a run of a study is one process, with one GPU at most"),
    "Slurm's time": (
        "time=1-00:00:00",
        "cluster_options='time=1-00:00:00': timeout_min= says it, in minutes; leave it",
    ),
    "a warning": ("signal_delay_s=x", "'signal_delay_s=x': it must be a whole number of seconds above 0"),
    "lines": ("setup=[1]", "cluster_options='setup=[1]': it must be a text, or a list of texts"),
    "others": ("additional_parameters=x", "it must be a dictionary of what sbatch takes, like {'mail-type': 'END'}"),
    "among others": ("additional_parameters={'gres': 'gpu:2'}", "gres: a run of a study is one process, with one GPU"),
    "unknown": ("partitions=gpu", "cluster_options: Unknown argument 'partitions' for executor 'slurm'"),
    "a type": ("timeout_min=long", 'cluster_options: Parameter "timeout_min" expected type'),
}


@pytest.mark.parametrize(("given", "message"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_named_before_anything_is_written(given, message, tmp_path):
    with pytest.raises(ValueError, match=re.escape(message)) as raised:
        queue(tmp_path, "local", given=given)
    assert "\n" not in str(raised.value)
    assert not list(tmp_path.iterdir())


def test_where_there_is_no_slurm_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^cluster=slurm: there is no Slurm here; start it where sbatch and srun are$"
    ):
        queue(tmp_path, "slurm")


def test_where_there_is_no_submitit_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    message = r"^cluster= needs submitit; install it: python -m pip install -r requirements-cluster.txt$"
    with pytest.raises(ValueError, match=message):
        queue(tmp_path, "local")


# --- Slurm itself ----------------------------------------------------------------------------------------------------


def answers() -> bool:
    """Whether there is a Slurm with a machine that works."""
    if shutil.which("sinfo") is None:
        return False
    said = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False)
    return any(state in said.stdout for state in ("idle", "mixed", "allocated"))


@pytest.mark.slow
def test_slurm_itself_does_the_same(tmp_path):
    """And is told that the time of a job is up, which then goes on."""
    if not answers():
        pytest.skip("no Slurm answers here")
    found = queue(tmp_path, "slurm", given="timeout_min=5")
    found.submit(
        [item(tmp_path, "right", "late", "wrong"), *(item(tmp_path, key) for key in ("late", "wrong", "long"))]
    )
    deadline = time.monotonic() + 300
    while not (tmp_path / "begun").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    job = found.records["long"]["job"]
    subprocess.run(["scancel", "--signal=USR2", job], check=True)
    ended(found, 300)  # two minutes are Slurm's own, before it begins again
    assert float((tmp_path / "late").read_text()) < float((tmp_path / "right").read_text())
    assert found.error("wrong") == "it is wrong" and found.error("right") is None
    assert (tmp_path / "saved").exists() and (tmp_path / "long").exists()
