"""A study: what is shared is made once, what is left is done, what fails stops no other, and mistakes come first."""

import ast
import dataclasses
import importlib
import itertools
import re
import shlex
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from cluster_tools import Slurm
from training_tools import STEPS, configure

import config
import main_classification
from algorithms import Algorithm, Study, run_study
from algorithms.prepare import num_steps
from algorithms.study_plan import Run, _listed
from algorithms.teaching import FINGERPRINTS, drawn_objective, open_objective
from algorithms.train import Training
from config.options import OPTIONS, Options
from dataloaders import load_dataset
from engine.progress import rough
from engine.records import save_results
from results.studies import TAUGHT_BY
from storage.documents import load_json, save_json

PAIR, METHODS = "small.one", ("KD", "QuEST")
STUDY = ("study", "with", f"pairs={PAIR}", "methods=KD,QuEST", "seeds=[0,1]", "name=both")
FAST = ("image_size=8", "cuda=False", "num_workers=0", "allow_poor_teacher=True")
MODULE = '''"""A pair of these tests."""

pair = {"teacher": "resnet8", "student": "resnet8", "teacher_experiment": "digits.RN8", "num_words": 16}
pair |= {"dataset": "digits", "epochs": 1, "milestones": (), "batch_size": %s}
'''


@pytest.fixture(scope="module", autouse=True)
def small(few_digits, tmp_path_factory) -> Iterator[None]:
    """Two pairs of a teacher that trains for an epoch, and one whose student no module trains alone."""
    folder = tmp_path_factory.mktemp("config")
    modules = {"one": MODULE % 64, "two": MODULE % 128}
    modules["other"] = modules["one"].replace('"student": "resnet8"', '"student": "resnet20"')
    for name, module in modules.items():
        (folder / "small" / name).mkdir(parents=True)
        (folder / "small" / name / "__init__.py").write_text(module)
    own = importlib.import_module("config.digits.RN8").config
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(config, "__path__", [*config.__path__, str(folder)])
        patch.setitem(own, "epochs", 1)
        patch.setitem(own, "milestones", [])
        yield


def run(place: Path, *words: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main_classification.py", *words, *FAST, f"localpath={place}"])
        return main_classification.main(sys.argv)


def command(place: Path) -> str:
    return shlex.join(["main_classification.py", *STUDY, *FAST, f"localpath={place}"])


def runs_of(place: Path) -> list[Path]:
    """In the order in which they are done."""
    parts = itertools.product((0, 1), METHODS)
    return [place.joinpath(*PAIR.split("."), method, f"seed{seed}") for seed, method in parts]


def told(place: Path, name: str = "both") -> dict[str, Any]:
    return load_json(place / "studies" / name / "study.json")


def table(place: Path) -> str:
    return (place / "studies/both/tables.md").read_text()


# --- the whole of it -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory) -> tuple[Path, list[Path]]:
    """A study of 2 methods and 2 seeds of which nothing was there, and the order in which all was trained."""
    place, trained = tmp_path_factory.mktemp("study"), []
    run_epoch = Training._run_epoch

    def begun(job: Training, epoch: int) -> None:
        trained.append(job.directory)
        run_epoch(job, epoch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Training, "_run_epoch", begun)
        assert run(place, *STUDY) == 0
    return place, trained


def test_what_is_shared_is_made_once_and_every_run_once(done):
    place, trained = done
    assert trained == [place / "digits/RN8", *runs_of(place)]
    assert [path.name for path in place.rglob("codebook*.pth")] == ["codebook_K16.pth"]


def test_the_study_says_what_it_was_of_and_what_came_out(done):
    place, _ = done
    found = told(place)
    assert (found["state"], found["against"], found["command"]) == ("finished", "KD", command(place))
    kd, quest = (member["runs"][0] for member in found["members"])
    assert kd["teacher_fingerprint"] == quest["teacher_fingerprint"] and kd["codebook_fingerprint"] is None
    assert quest["codebook_fingerprint"] == load_json(runs_of(place)[1] / "results.json")["codebook_fingerprint"]
    for member in found["members"]:
        folder = place.joinpath(*member["experiment"].split("."))
        top1 = [load_json(folder / f"seed{seed}/results.json")["top1"] for seed in (0, 1)]
        assert [run["top1"] for run in member["runs"]] == top1
        mean, deviation = statistics.fmean(top1), statistics.stdev(top1)
        assert f"| {member['method']} | {member['pair']} | {mean:.2f} | {deviation:.2f} | 2 |" in table(place)


def test_a_run_is_that_of_its_own_command(done):
    place, _ = done
    recorded = load_json(runs_of(place)[0] / "results.json")["command"].split()
    assert recorded[:3] == ["main_classification.py", "with", "config=small.one.KD"] and "seeds=[0]" in recorded
    assert len([path for path in (place / "sacred").iterdir() if path.name.isdigit()]) == 4


# --- what is left, with trainings that only say what they would be ---------------------------------------------------


def results_of(job: Training, top1: float) -> dict[str, Any]:
    """Of an epoch of an hour; with `val_split` the top-1 of held-out images, and of the test images what is left."""
    tested = 100 - top1 if job.options.data.val_split else top1
    figures = {"top1": tested, "best_top1": tested, "best_epoch": 1, "top5": 99.0, "epochs": 1, "seconds": 3600.0}
    return figures | {"history": [{"epoch": 1, "seconds": 3600.0, "eval": {"top1": top1}}]}


class Trained:
    """Stands for every training: notes where it is, leaves what one leaves, and fails where it is told to."""

    def __init__(self, patch: pytest.MonkeyPatch):
        self.places: list[Path] = []
        self.fails: dict[str, Callable[[], None]] = {}  # by the end of its directory
        self.top1: Callable[[Training], float] = lambda job: 90.0 + job.options.run.seed
        trained = self

        def train(job: Training) -> dict[str, Any]:
            job.begin()
            trained.places.append(job.directory)
            for where, fail in trained.fails.items():
                if str(job.directory).endswith(where):
                    fail()
            return save_results(job.directory, Algorithm.facts(job) | results_of(job, trained.top1(job)))

        patch.setattr(Training, "_run", train)


@pytest.fixture
def trained(monkeypatch) -> Trained:
    return Trained(monkeypatch)


@pytest.fixture
def part(done: tuple[Path, list[Path]], tmp_path: Path) -> Path:
    """A copy of the study of which the last two runs are missing."""
    shutil.copytree(done[0], tmp_path, ignore=shutil.ignore_patterns("sacred"), dirs_exist_ok=True)
    for place in runs_of(tmp_path)[-2:]:
        shutil.rmtree(place)
    return tmp_path


def diverge() -> None:
    raise FloatingPointError("loss became nan in epoch 1")


def interrupt() -> None:
    raise KeyboardInterrupt


def test_what_is_done_is_left_alone_and_what_is_missing_is_done(part, trained, capsys):
    before = told(part)["members"]
    assert run(part, *STUDY) == 0
    assert trained.places == runs_of(part)[-2:]
    for member, earlier in zip(told(part)["members"], before, strict=True):
        done, missing = member["runs"]
        assert done == earlier["runs"][0] and missing["top1"] == 91
    assert "Methods compared\n" in capsys.readouterr().out


def test_a_run_that_fails_ends_no_other_and_is_tried_again(part, trained, capsys):
    *_, failed, last = runs_of(part)
    trained.fails["one/KD/seed1"] = diverge
    assert run(part, *STUDY) == 1
    assert trained.places == [failed, last]
    error = "one run has failed: small.one.KD, seed 1; the table has the errors, and the same command tries again"
    assert capsys.readouterr().err.splitlines()[-1] == f"error: {error}"
    assert "| seed 1 failed: loss became nan in epoch 1 |" in table(part)
    assert [run["state"] for member in told(part)["members"] for run in member["runs"]].count("failed") == 1
    trained.fails.clear()
    assert run(part, *STUDY) == 0 and trained.places[2:] == [failed]
    assert "failed" not in table(part)


def test_after_ctrl_c_the_same_command_does_the_rest(part, trained, capsys):
    *_, stopped, last = runs_of(part)
    trained.fails["one/KD/seed1"] = interrupt
    assert run(part, *STUDY) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; go on with: python {command(part)}"
    assert told(part)["state"] == "stopped" and "| seed 1 not run |" in table(part)
    trained.fails.clear()
    assert run(part, *STUDY) == 0
    assert trained.places == [stopped, stopped, last] and told(part)["state"] == "finished"


def test_a_state_is_gone_on_from_by_the_command_of_the_study(part, trained, capsys):
    """Where the run itself would go on with `checkpoint=-1`."""

    def stop() -> None:
        (runs_of(part)[-2] / "stopped.pth").touch()
        raise KeyboardInterrupt

    trained.fails["one/KD/seed1"] = stop
    assert run(part, *STUDY) == 130
    assert capsys.readouterr().err.splitlines()[-1] == f"stopped; go on with: python {command(part)}"


def test_what_cannot_be_prepared_fails_the_runs_that_need_it(tmp_path, trained, capsys):
    """And is tried once for both methods."""
    trained.fails["digits/RN8"] = diverge
    words = ("study", "with", "pairs=small.one", "methods=alone,KD,QuEST", "seeds=[3]", "name=both")
    assert run(tmp_path, *words) == 1
    assert trained.places == [tmp_path / "digits/RN8", tmp_path / "digits/RN8/seed3"]
    alone, kd, quest = told(tmp_path)["members"]
    assert [member["experiment"] for member in (alone, kd)] == ["digits.RN8", "small.one.KD"]
    assert alone["runs"][0]["state"] == "done"
    assert kd["runs"][0]["error"] == quest["runs"][0]["error"]
    assert kd["runs"][0]["error"] == "preparing digits.RN8: loss became nan in epoch 1"
    assert "2 runs have failed, the first is small.one.KD, seed 3" in capsys.readouterr().err


def test_a_dry_run_lists_runs_with_their_times_and_starts_none(part, trained, capsys):
    words = [word.replace("[0,1]", "[0,1,2]") for word in STUDY[2:]]
    before = sorted(part.rglob("*"))
    capsys.readouterr()
    assert run(part, "study", "--dry-run", "with", *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not trained.places and sorted(part.rglob("*")) == before
    assert len(lines) == 7 and lines[0] == "small.one.KD, seed 0: done"
    assert sum(line.endswith(": done") for line in lines) == 2
    seconds = load_json(part / "small/one/KD/seed0/results.json")["history"][0]["seconds"]
    assert lines[2] == f"small.one.KD, seed 1: about {rough(seconds)}"
    assert lines[-1].startswith("study both: 4 of 6 runs are left; about ")


def test_the_time_of_a_study_is_shared_by_its_jobs(part, monkeypatch):
    monkeypatch.setattr(Run, "estimate", lambda run: 1800.0 if run.seed == 5 else None)
    monkeypatch.setattr("algorithms.study_plan.step_seconds", lambda job, dataset: 600 / num_steps(job, dataset))
    study = plan(
        pairs=[PAIR],
        methods=list(METHODS),
        seeds=[0, 1, 5],
        name="both",
        localpath=str(part),
        jobs=2,
        image_size=8,
    )
    *_, total = study.listing()
    assert total == "study both: 4 of 6 runs are left; about 40 min for 4, with jobs=2"
    study.options = dataclasses.replace(study.options, cluster="slurm")
    *_, total = study.listing()
    assert total == f"study both: 4 of 6 runs are left; about {rough(4800)} of jobs in all for 4"


def test_of_what_has_never_run_a_few_steps_are_taken(tmp_path, capsys):
    """Before there are a teacher and words; two seeds of a method are measured once."""
    assert run(tmp_path / "empty", *STUDY, "dry_run=True") == 0
    said, teacher, words, *lines, total = capsys.readouterr().out.splitlines()
    assert said.startswith("measuring a few steps of 3 trainings of which there is no earlier run; evaluation, and ")
    by_steps = r"about \d+ s by its steps"
    assert re.fullmatch(rf"prepare: train digits.RN8 \(resnet8\), epochs=1 batch_size=64; {by_steps}", teacher)
    assert words == "prepare: codebook of digits.RN8, num_words=16; time not known beforehand"
    assert len(lines) == 4 and all(re.search(rf"^small\.one\.\w+, seed \d: {by_steps}$", line) for line in lines)
    assert re.fullmatch(r"study both: 4 of 4 runs are left; about \d+ s for 4, with jobs=1", total)
    assert not list(tmp_path.iterdir())


def test_the_time_by_steps_is_that_of_all_steps_of_all_epochs(tmp_path, monkeypatch):
    monkeypatch.setattr("algorithms.study_plan.step_seconds", lambda job, dataset: 30.0)
    study = plan(pairs=[PAIR], methods=["KD"], seeds=[0], localpath=str(tmp_path), image_size=8, epochs=5)
    *_, line, _ = study.listing()
    assert line == f"small.one.KD, seed 0: about {rough(30.0 * 5 * STEPS)} by its steps"


def test_where_no_step_can_be_taken_there_is_no_time(tmp_path, monkeypatch, capsys):
    def fail(*_: Any) -> None:
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("algorithms.study_plan.step_seconds", fail)
    assert run(tmp_path / "empty", *STUDY, "dry_run=True") == 0
    _, teacher, _, *lines, total = capsys.readouterr().out.splitlines()
    assert all(line.endswith("not measured") for line in (teacher, *lines)) and len(lines) == 4
    assert total == "study both: 4 of 4 runs are left; not measured, with jobs=1"


def test_a_step_of_random_numbers_has_the_shapes_of_one_that_reads_files(folder):
    options, dataset = Options.of(configure("letKD-2", folder)), load_dataset("digits", image_size=8)
    shapes = [
        {name: tensor.shape for name, tensor in chain(objective.named_parameters(), objective.named_buffers())}
        for objective in (open_objective(options, dataset), drawn_objective(options, dataset))
    ]
    assert shapes[0] == shapes[1] and any(name.startswith("losses.decisions.") for name in shapes[0])


SEARCH = ("study", "with", "pairs=small.one", "methods=KD", "seeds=[0]", "name=tuning")
SEARCH = (*SEARCH, "search=kd.temperature=[1,8]", "val_split=64")


@pytest.fixture
def searched(done: tuple[Path, list[Path]], tmp_path: Path, trained: Trained) -> Path:
    """Where a search has a teacher already; the larger temperature is better on the images that are held out."""
    trained.top1 = lambda job: {1: 70.0, 8: 80.0}[job.options.flat["kd.temperature"]]
    for folder in (tmp_path, tmp_path / "studies/tuning/search"):
        shutil.copytree(done[0] / "digits", folder / "digits")
    return tmp_path


def test_a_search_chooses_on_held_out_training_images(searched, trained):
    """Not by `top1`, which is of the test images where training images are held out: there the other value is best."""
    assert run(searched, *SEARCH) == 0
    below, named = searched / "studies/tuning/search/search/small/one", "KD_kd-temperature"
    places = [below / f"{named}-1/seed0", below / f"{named}-8/seed0", searched / f"tuned/small/one/{named}-8/seed0"]
    assert trained.places == places
    results = [load_json(place / "results.json") for place in places]
    assert [own["top1"] for own in results] == [30, 20, 80]
    assert [own["options"]["val_split"] for own in results] == [64, 64, 0]
    assert [own["options"]["kd.temperature"] for own in results] == [1, 8, 8]
    found = told(searched, "tuning")
    candidates = [(one["runs"][0]["top1"], one["is_chosen"]) for one in found["search"]["candidates"]]
    assert candidates == [(70, False), (80, True)]
    assert found["members"][0]["values"] == {"kd.temperature": 8}
    other = {"pairs": [PAIR], "methods": ["KD"], "seeds": [0], "search": ["kd.temperature=[1,8]"], "val_split": 64}
    with pytest.raises(ValueError, match=r"-8/seed0 was trained with learning_rate=0.05 \(now 0.01\)"):
        plan(**other, name="other", localpath=str(searched), image_size=8, learning_rate=0.01)


@pytest.mark.parametrize(
    ("failing", "values", "error"),
    [((8,), {"kd.temperature": 1}, None), ((1, 8), {}, "no value of its search has been trained with all seeds")],
)
def test_a_value_with_a_run_that_failed_is_not_taken(failing, values, error, searched, trained):
    trained.fails = {f"search/small/one/KD_kd-temperature-{value}/seed0": diverge for value in failing}
    assert run(searched, *SEARCH) == 1
    (member,) = told(searched, "tuning")["members"]
    assert member["values"] == values and member["runs"][0].get("error") == error


def test_a_candidate_whose_file_is_damaged_has_failed_and_is_named(searched, trained, capsys):
    """Its history has gone, of which the last epoch says what the value is chosen by."""
    assert run(searched, *SEARCH) == 0
    path = searched / "studies/tuning/search/search/small/one/KD_kd-temperature-8/seed0/results.json"
    save_json(path, load_json(path) | {"history": []})
    capsys.readouterr()
    assert run(searched, *SEARCH) == 1
    error = f"{path} is damaged: it has no top-1 on the held-out images after the last epoch; move its folder away"
    one, other = told(searched, "tuning")["search"]["candidates"]
    assert other["runs"] == [{"seed": 0, "state": "failed", "error": error}]
    assert one["is_chosen"] and one["runs"][0]["top1"] == 70
    assert capsys.readouterr().err.startswith("error: one run has failed: search.small.one.KD_kd-temperature-8, seed 0")


def test_what_has_taught_a_run_is_all_that_runs_record_of_it():
    assert TAUGHT_BY.keys() == FINGERPRINTS.keys()


def test_averages_of_weights_are_in_the_study(part, trained, monkeypatch):
    plain = results_of
    monkeypatch.setattr(
        sys.modules[__name__], "results_of", lambda job, top1: plain(job, top1) | {"average_top1": top1 + 1}
    )
    assert run(part, *STUDY) == 0
    for member in told(part)["members"]:
        assert [found["average_top1"] for found in member["runs"]] == [None, member["runs"][1]["top1"] + 1]
    assert "KD, average of the weights" in table(part)


# --- mistakes --------------------------------------------------------------------------------------------------------

PAIR_OF_DIGITS = "pairs=digits.RN14_RN8"


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("pairs=small.RN8_RN9", "methods=KD"), "unknown config 'small.RN8_RN9.KD'"),
        (("pairs=digits.RN14_RN8,digits.RN8", "methods=KD"), "KD needs a teacher, and digits.RN8.KD has none"),
        ((PAIR_OF_DIGITS, "methods=KD,DKDD"), "unknown method 'DKDD'; did you mean config='digits.RN14_RN8.DKD'"),
        ((PAIR_OF_DIGITS, "methods=KD,DKD,KD"), "digits.RN14_RN8.KD is asked for twice"),
        (
            ("pairs=small.other", "methods=KD,alone"),
            "no module of config/ trains resnet20 alone on digits; write one, config/mine/NAME.py with "
            "classification(dataset='digits', network=...), as docs/own-network.md shows, or leave out alone",
        ),
        (("methods=KD",), "a study needs pairs=, a list of names of pairs, like digits.RN14_RN8"),
        (("pairs=digits.RN14_RN8",), "a study needs methods="),
        (("pairs=5", "methods=KD"), "pairs=5 must be a list of names of pairs"),
        ((PAIR_OF_DIGITS, "methods=KD", "learning_rat=0.1"), "unknown option 'learning_rat'; did you mean"),
        ((PAIR_OF_DIGITS, "methods=KD,DKD", "kd.temprature=2"), "unknown option 'kd.temprature'; did you mean"),
        ((PAIR_OF_DIGITS, "methods=KD,DKD", "epochs=0"), "epochs=0 must be at least 1"),
        ((PAIR_OF_DIGITS, "methods=KD,DKD", "dkd.temperature=-1"), "dkd.temperature=-1 must be above 0"),
        (
            (PAIR_OF_DIGITS, "methods=KD", "student=resnet20"),
            "student=resnet20 is another network than that of digits.RN14_RN8: a study takes networks by the names of "
            "pairs; write one, config/mine/PAIR/__init__.py",
        ),
        (
            ("pairs=CIFAR100.resnetv1.RN56_RN20", "methods=KD", "teacher=resnet110", "protocol=published"),
            "teacher=resnet110 is another network than that of CIFAR100.resnetv1.RN56_RN20: a study takes",
        ),
        ((PAIR_OF_DIGITS, "methods=KD", "config=digits.RN8"), "config=digits.RN8 is not for a study"),
        ((PAIR_OF_DIGITS, "methods=KD", "evaluate=True"), "evaluate=True is not for a study"),
        ((PAIR_OF_DIGITS, "methods=KD", "best=True"), "best=True concerns evaluate"),
        ((PAIR_OF_DIGITS, "methods=KD", "seed=3"), "a study has seeds="),
        ((PAIR_OF_DIGITS, "methods=KD", "seeds=[1,1]"), "seeds=[1, 1] must be a list of different"),
        ((PAIR_OF_DIGITS, "methods=KD", "seeds=[1]", "trials=2"), "trials=2 means seeds=[0, 1]"),
        ((PAIR_OF_DIGITS, "methods=KD", "jobs=0"), "jobs=0 must be at least 1"),
        ((PAIR_OF_DIGITS, "methods=KD,DKD", "against=AT"), "against=AT must be one of the methods: KD, DKD"),
        ((PAIR_OF_DIGITS, "methods=KD", "name=a/b"), "name='a/b' must be the name of a folder"),
        ((PAIR_OF_DIGITS, "methods=KD", "search=kd.temperature=[2,4]"), "search= needs val_split="),
        ((PAIR_OF_DIGITS, "methods=KD", "search=kd.tau=[2,4]", "val_split=9"), "unknown option 'kd.tau'"),
        ((PAIR_OF_DIGITS, "methods=KD", "search=epochs=[0,4]", "val_split=9"), "epochs=0 must be at least 1"),
        ((PAIR_OF_DIGITS, "methods=KD", "search=epochs=4", "val_split=9"), "search='epochs=4' must be an option"),
        ((PAIR_OF_DIGITS, "methods=KD", "search=['a=[1,2]', 'a =[3,4]']"), "search=['a=[1,2]', 'a =[3,4]'] has a"),
        ((PAIR_OF_DIGITS, "methods=KD", "search=epochs=[1,2]", "epochs=3", "val_split=9"), "epochs is searched"),
        (
            (PAIR_OF_DIGITS, "methods=KD", "search=epochs=[1,2] epochs=[3,4]", "val_split=9"),
            "search=['epochs=[1,2]', 'epochs=[3,4]'] has epochs twice",
        ),
    ],
    ids=str,
)  # fmt: skip
def test_a_mistake_is_named(words, reason):
    given = main_classification.STUDY_OPTIONS | {"localpath": "nowhere"}
    for word in words:
        key, _, given[key] = word.partition("=")
        with suppress(ValueError, SyntaxError):  # what is no value is a text, as sacred has it
            given[key] = ast.literal_eval(given[key])
    with pytest.raises(ValueError, match=f"^{re.escape(reason)}"):
        Study(given)


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        ("seed=3", "a study has seeds="),
        ("batch_size=5000", "digits.RN14_RN8.KD: batch_size 5000 exceeds the 256"),  # which the images tell
    ],
)
def test_a_mistake_is_found_before_anything_is_made(word, reason, tmp_path, capsys):
    words = [PAIR_OF_DIGITS, "methods=KD", word, "cuda=False", f"localpath={tmp_path}"]
    assert main_classification.main(["main.py", "study", "with", *words]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {reason}") and error.count("\n") == 1, error
    assert not list(tmp_path.iterdir())


def test_all_mistakes_are_said_in_one_line(tmp_path, capsys):
    words = ("study", "with", "pairs=digits.RN14_RN8", "methods=KDD,DKDD")
    assert run(tmp_path, *words) == 1
    error = capsys.readouterr().err
    assert "'KDD'" in error and "'DKDD'" in error and error.count("\n") == 1


def test_runs_with_other_settings_are_refused_before_any_begins(part, monkeypatch, capsys):
    trained = Trained(monkeypatch)
    assert run(part, *STUDY, "learning_rate=0.01") == 1
    error = capsys.readouterr().err
    assert "was trained with learning_rate=0.05 (now 0.01)" in error and error.count("\n") == 1 and not trained.places


@pytest.mark.parametrize("key", [key for key, said in OPTIONS.items() if said.jobs == ("study",)])
def test_other_commands_say_whose_options_these_are(key, tmp_path, capsys):
    assert run(tmp_path, "with", "config=digits.RN8", f"{key}=3") == 1
    assert capsys.readouterr().err.startswith(f"error: {key} is for a study: python main_classification.py study with")


# --- how it is asked for ---------------------------------------------------------------------------------------------


def plan(**options: Any) -> Study:
    given = {"pairs": ["digits.RN14_RN8"], "methods": ["KD", "letKD-2"], "localpath": "nowhere"}
    return Study(main_classification.STUDY_OPTIONS | given | options)


@pytest.mark.parametrize("written", ["KD,DKD", "[KD,DKD]", "['KD', 'DKD']", ["KD", "DKD"]], ids=str)
def test_names_are_written_as_shells_leave_them(written):
    assert [member.method for member in plan(pairs="small.one", methods=written).members] == ["KD", "DKD"]


def test_an_option_goes_to_all_that_have_it():
    study = plan(**{"kd.temperature": 2.0, "num_words": 64, "ce.weight": 0.5, "epochs": 3})
    kd, letkd = (member.options for member in study.members)
    assert (kd["kd.temperature"], kd["ce.weight"], kd["epochs"]) == (2.0, 0.5, 3) and "num_words" not in kd
    assert (letkd["num_words"], letkd["cls_loss_coef"], letkd["epochs"]) == (64, 0.5, 3)
    assert list(study.notes()) == [
        "kd.temperature=2.0 is no option of letKD-2", "num_words=64 is no option of KD"
    ]  # fmt: skip


@pytest.fixture
def pictures(tmp_path) -> str:
    """A folder with the name of a picture, which nobody opens."""
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/one.png").touch()
    return str(tmp_path / "pictures")


def test_a_method_goes_without_what_others_alone_can_use(pictures):
    """Where none can use it, it stays, and is refused as by a run of its own."""
    study = plan(methods=["alone", "KD", "DKD"], unlabelled=pictures, unlabelled_share=0.25)
    alone, kd, dkd = (member.options for member in study.members)
    assert kd["unlabelled"] == pictures and kd["unlabelled_share"] == 0.25
    assert not {"unlabelled", "unlabelled_share"} & (alone.keys() | dkd.keys())
    (note,) = study.notes()
    assert note.startswith(f"alone, DKD: without unlabelled={pictures}, as all that it minimises reads labels; ")
    cached = plan(methods=["KD", "lskd:DKD", "sdd:KD", "letKD-1", "LS"], teacher_cache="logits", teacher_cache_top=3)
    assert ["teacher_cache" in one.options for one in cached.members] == [True, True, False, False, False]
    assert ["teacher_cache_top" in one.options for one in cached.members] == [True, True, False, False, False]
    (note,) = cached.notes()
    assert note.startswith("sdd:KD, letKD-1, LS: without teacher_cache=logits, as it reads nothing of a")
    assert "by its rounding only" in note
    whole = plan(methods=["KD", "sdd:KD", "letKD-1", "LS"], teacher_cache="all")
    assert ["teacher_cache" in one.options for one in whole.members] == [True, True, True, False]
    with pytest.raises(ValueError, match="all that this run minimises reads labels"):
        plan(methods=["alone", "DKD"], unlabelled=pictures)
    with pytest.raises(ValueError, match="keeps the logits of the teacher alone"):
        plan(methods=["letKD-1"], teacher_cache="logits")
    with pytest.raises(ValueError, match="keeps what is said of labelled images alone"):
        plan(methods=["alone", "KD"], teacher_cache="logits", unlabelled=pictures)


def test_no_search_chooses_among_untrained_classifiers(tmp_path, pictures, monkeypatch):
    """Before a run, where nothing would train them; and one that is there already."""
    options = {"unlabelled": pictures, "unlabelled_share": 1.0, "search": "learning_rate=[0.05,0.1]", "val_split": 64}
    search = plan(methods=["QuEST"], **options, **{"ce.weight": 0.0}, localpath=str(tmp_path))
    for job in ("train.Training", "features.OfflineAlgorithm", "base.Algorithm"):
        monkeypatch.setattr(f"algorithms.{job}.check_images", lambda job, open_images: None)
    with pytest.raises(ValueError, match="QuEST_learning_rate-0-05: nothing would train its classifier"):
        run_study(search, lambda config: None, lambda content: None)
    (candidate, _) = search.candidates[search.members[0]]
    found = Run(candidate, 0)
    monkeypatch.setattr(Run, "results", lambda run: {"classifier": "untrained", "history": [{"eval": {"top1": 9.0}}]})
    with pytest.raises(ValueError, match=r"^nothing has trained the classifier of .*, so its accuracy choos"):
        found.held_out_top1()


@pytest.mark.parametrize(
    ("text", "options"),
    [
        (" a=1  kd.b=x y ", ["a=1", "kd.b=x y"]),
        ("a=[1, 2] b.c=['d e=f', 'g']  h=3", ["a=[1, 2]", "b.c=['d e=f', 'g']", "h=3"]),
        ("""a="it's b=1" c='d'""", ["""a="it's b=1\"""", "c='d'"]),
        ("a={'comment': 'b c=d', 'e': {'f': 'g h=i'}}", ["a={'comment': 'b c=d', 'e': {'f': 'g h=i'}}"]),
        ("a = [1,\n2] b=3", ["a = [1,\n2]", "b=3"]),
        ("a=[x,y] b=3 c=]", ["a=[x,y]", "b=3", "c=]"]),  # what is no value to Python is refused, or a text, by itself
        ("a=don't b='c", ["a=don't", "b='c"]),
        ("", [""]),
    ],
)
def test_several_options_of_one_text(text, options):
    assert _listed("search", text) == _listed("cluster_options", text) == options


def test_more_seeds_are_the_same_study_and_other_options_another():
    one = {"methods": ["KD"], "pairs": ["small.one"]}
    name = plan(**one).name
    assert plan(**one, seeds=[5]).name == plan(**one, cuda=False).name == name
    assert len({name, plan(**one, epochs=3).name, plan(**one, **{"kd.temperature": 2.0}).name}) == 3
    assert plan(**one, name="mine").directory == Path("nowhere/studies/mine")


def test_a_file_is_the_same_as_words(tmp_path, capsys):
    file = tmp_path / "study.yaml"
    file.write_text("pairs: [digits.RN14_RN8]\nmethods: [alone, KD]\ntrials: 1\nkd: {temperature: 2}\nname: mine\n")
    words = ["study", "with", str(file), "dry_run=True", "methods=KD,alone", f"localpath={tmp_path}"]
    assert main_classification.main(["main_classification.py", *words]) == 0
    *_, kd, alone, total = capsys.readouterr().out.splitlines()
    assert kd.startswith("digits.RN14_RN8.KD, seed 0: ") and alone.startswith("digits.RN8, seed 0: ")
    assert total.startswith("study mine: 2 of 2 runs are left")


def test_the_teacher_and_the_words_of_a_search_have_not_seen_the_images_that_choose():
    study = plan(methods=["QuEST"], search="learning_rate=[0.05,0.1]", val_split=64)
    for steps in study.needed.values():
        assert [step.job.mode for step in steps] == ["train", "kmeans"]
        assert {step.job.options.data.val_split for step in steps} == {64}
        assert {step.job.options.run.localpath for step in steps} == {str(study.directory / "search")}


def test_runs_come_pair_by_pair_and_seed_by_seed_and_each_once():
    """The student alone of two pairs is one experiment."""
    both = {"pairs": ["small.one", "small.two"], "methods": ["alone", "KD"], "seeds": [0, 1]}
    study = plan(**both)
    assert [run.title for run in study.runs_of(study.members)] == [
        "digits.RN8, seed 0", "small.one.KD, seed 0", "digits.RN8, seed 1", "small.one.KD, seed 1",
        "small.two.KD, seed 0", "small.two.KD, seed 1",
    ]  # fmt: skip
    study = plan(**both, search=["learning_rate=[0.05,0.1]"], val_split=5)
    names = {run.member.name for run in study.runs_of(study.known)}
    assert len(names) == 6 and "search.digits.RN8_learning_rate-0-05" in names


def test_runs_by_a_published_protocol_have_names_of_their_own():
    study = plan(pairs=["CIFAR100.resnetv1.RN56_RN20"], methods=["alone", "KD"], protocol="published")
    alone, kd = study.members
    names = ["published.CIFAR100.resnetv1.RN20", "published.CIFAR100.resnetv1.RN56_RN20.KD"]
    assert [alone.name, kd.name] == names and kd.config["nesterov"] is False
    tuned = kd.with_values({"kd.temperature": 2.0}).name
    assert tuned == "tuned.published.CIFAR100.resnetv1.RN56_RN20.KD_kd-temperature-2-0"


def test_two_options_are_searched_in_all_combinations():
    study = plan(
        pairs=["small.one"], methods=["KD", "AT"], search="kd.temperature=[2, 4] learning_rate=[0.05,0.1]", val_split=5
    )
    kd, at = study.candidates.values()
    assert [one.values for one in kd] == [
        {"kd.temperature": temperature, "learning_rate": rate} for temperature in (2, 4) for rate in (0.05, 0.1)
    ]
    assert [one.values for one in at] == [{"learning_rate": 0.05}, {"learning_rate": 0.1}]
    assert kd[0].name == "search.small.one.KD_kd-temperature-2_learning_rate-0-05"
    assert "val_split" not in study.members[0].options


# --- in a cluster's queue --------------------------------------------------------------------------------------------


@pytest.fixture
def slurm(tmp_path_factory, monkeypatch) -> Slurm:
    pytest.importorskip("submitit")
    return Slurm(tmp_path_factory.mktemp("slurm") / "own", monkeypatch)


def state_of(place: Path) -> dict[str, str]:
    """By the last part of the experiment and seed."""
    members = told(place)["members"]
    return {f"{one['method']} {run['seed']}": run["state"] for one in members for run in one["runs"]}


def test_a_queue_gets_what_is_shared_first_and_then_the_runs_that_are_left(tmp_path, trained, slurm, capsys):
    """Runs that need the same are an array; nothing is trained here."""
    assert run(tmp_path, *STUDY, "cluster=slurm") == 0
    behind = [re.findall(r"--dependency=(\S+)", script) for script in slurm.asked()]
    arrays = [re.findall(r"--array=(\S+)", script) for script in slurm.asked()]
    assert behind == [[], ["afterany:1"], ["afterany:1:2_0"]]  # the teacher; words and KD; QuEST
    assert arrays == [[], ["0-2%3"], ["0-1%2"]] and not trained.places
    assert set(state_of(tmp_path).values()) == {"queued"} and told(tmp_path)["state"] == "running"
    assert "| seed 0 queued; seed 1 queued |" in table(tmp_path)
    assert "4 runs are in the queue" in capsys.readouterr().out
    records = load_json(tmp_path / "studies/jobs.json")
    teacher, words = (record["title"] for key, record in records.items() if key.startswith(("train ", "kmeans ")))
    assert teacher.startswith("digits.RN8, train digits.RN8") and words.startswith("digits.RN8, codebook of digits.RN8")


def test_the_same_command_says_how_jobs_are_and_submits_what_is_missing(part, trained, slurm, capsys):
    one, other = (str(place) for place in runs_of(part)[-2:])
    assert run(part, *STUDY, "cluster=slurm") == 0 and slurm.count() == 1
    slurm.has("1_0 RUNNING", "1_1 PENDING")
    assert run(part, *STUDY, "cluster=slurm") == 0 and slurm.count() == 1
    assert state_of(part) == {"KD 0": "done", "KD 1": "running", "QuEST 0": "done", "QuEST 1": "queued"}
    assert run(part, *STUDY, "cluster=slurm", "dry_run=True") == 0
    assert re.search(r"^small.one.KD, seed 1: running, job 1_0; /.*\.txt$", capsys.readouterr().out, re.MULTILINE)
    output = load_json(part / "studies/jobs.json")[one]["output"]
    Path(output).parent.mkdir(parents=True)
    Path(output).write_text("$ python main_classification.py\nerror: loss became nan in epoch 1\n")
    slurm.has("1_1 RUNNING")
    assert run(part, *STUDY, "cluster=slurm") == 0 and slurm.count() == 2
    assert "| seed 1 queued: last try: loss became nan in epoch 1 |" in table(part)
    records = load_json(part / "studies/jobs.json")
    assert [records[key]["folder"] for key in (one, other)] == ["2", "1"] and not trained.places


def test_runs_of_which_a_teacher_has_failed_say_so(tmp_path, trained, slurm):
    assert run(tmp_path, *STUDY, "cluster=slurm") == 0
    records = load_json(tmp_path / "studies/jobs.json")
    output = next(Path(record["output"]) for key, record in records.items() if key.startswith("train "))
    output.parent.mkdir(parents=True)
    output.write_text("$ python main_classification.py\nerror: a full disk\n")
    slurm.has()
    assert run(tmp_path, *STUDY, "cluster=slurm") == 0 and slurm.count() == 6
    error = told(tmp_path)["members"][1]["runs"][0]["error"]
    assert re.fullmatch(r"last try: preparing digits.RN8, train .*: a full disk", error)


def test_a_search_in_a_queue_is_decided_when_its_runs_are_there(searched, trained, slurm):
    """A value whose runs fail again and again is left out."""
    words = [*SEARCH, "cluster=slurm"]
    assert run(searched, *words) == 0 and slurm.count() == 1
    assert told(searched, "tuning")["members"][0]["runs"][0]["state"] == "not run"
    assert run(searched, *SEARCH) == 0  # as the jobs do it
    shutil.rmtree(searched / "tuned")
    folder = searched / "studies/tuning/search/search/small/one/KD_kd-temperature-8/seed0"
    shutil.rmtree(folder)
    output = Path(load_json(searched / "studies/jobs.json")[str(folder)]["output"])
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("$ python main_classification.py\nerror: loss became nan in epoch 1\n")
    slurm.has()
    assert run(searched, *words) == 0 and slurm.count() == 2
    assert told(searched, "tuning")["search"]["candidates"][1]["runs"][0]["state"] == "queued"
    slurm.has()
    with output.open("a") as said:
        said.write("$ python main_classification.py\nerror: loss became nan in epoch 1\n")
    assert run(searched, *words) == 1 and slurm.count() == 3
    error = told(searched, "tuning")["search"]["candidates"][1]["runs"][0]["error"]
    again = f"it has failed 2 times: to have it tried again, remove {output}"
    assert error == f"loss became nan in epoch 1; {again}"
    (member,) = told(searched, "tuning")["members"]
    assert member["values"] == {"kd.temperature": 1} and member["runs"][0]["state"] == "queued"


def test_what_has_ended_since_a_study_was_planned_is_not_made_again(part, slurm):
    words = {"image_size": 8, "cuda": False, "num_workers": 0, "allow_poor_teacher": True, "localpath": str(part)}
    for folder in ("digits", "VQ"):
        (part / folder).rename(part / f"later{folder}")
    study = plan(pairs=[PAIR], methods=list(METHODS), seeds=[0, 1], name="both", cluster="slurm", **words)
    for folder in ("digits", "VQ"):
        (part / f"later{folder}").rename(part / folder)
    assert run_study(study, lambda options: None, lambda found: None) == [] and slurm.count() == 1
    assert load_json(part / "studies/jobs.json").keys() == {str(place) for place in runs_of(part)[-2:]}


def test_studies_share_what_differs_in_options_without_bearing(tmp_path, trained, slurm):
    assert run(tmp_path, *STUDY, "cluster=slurm") == 0 and slurm.count() == 3
    other = [word for word in STUDY if not word.startswith("name=")]
    assert run(tmp_path, *other, "name=other", "deterministic=True", "cluster=slurm") == 0 and slurm.count() == 3


def test_parameters_without_a_queue_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^cluster_options= is for the jobs of a queue; give cluster=slurm or "):
        plan(pairs=[PAIR], methods=["KD"], cluster_options=["partition=gpu"], localpath=str(tmp_path))


@pytest.mark.slow
def test_submitits_local_queue_trains_a_study(part, capsys, monkeypatch):
    """Two runs, each a process of its own; then the same command has the table."""
    pytest.importorskip("submitit")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    words = ["study", "with", "pairs=digits.RN14_RN8", "methods=alone", "seeds=[0,1]", "name=both", "epochs=1"]
    words += ["milestones=[]", "cluster=local", "jobs=1"]
    assert run(part, *words) == 0
    deadline = time.monotonic() + 300
    while set(state_of(part).values()) != {"done"}:
        assert time.monotonic() < deadline
        time.sleep(1)
        assert run(part, *words) == 0
    assert told(part)["state"] == "finished"
    assert {record["folder"] for record in load_json(part / "studies/jobs.json").values()} == {"1", "2"}
