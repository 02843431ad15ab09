"""Trials: a directory for each seed, what is finished is left alone, what was broken off goes on, and their mean."""

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
import torch

import main_classification
from algorithms import check_options, run_trials, trials
from algorithms.trials import TRIALS, _summarized, format_summary
from config.experiments import ENTRY_OPTIONS
from config.options import Options
from engine.checkpoints import NEWEST, load_checkpoint, save_checkpoint
from engine.records import RESULTS, save_results
from results import settings
from results.places import run_directory
from storage.tensor_files import load_json, save_json

NAME = "digits.RN8"


@pytest.fixture
def config(tmp_path) -> dict:
    return main_classification.default_config(NAME) | {"localpath": str(tmp_path), "trials": 3}


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "digits/RN8"


def run(config: dict, job: Callable[[dict], dict]) -> dict:
    """The trials of a configuration, and what a job on each of theirs leaves."""
    return run_trials(Options.of(config), lambda trial: job(trial.flat))


def directory_of(trial: dict) -> Path:
    """Where its training is."""
    options = Options.of(trial)
    return run_directory(options.run.localpath, options.job, "train")


def train(trial: dict) -> dict:
    """What a training leaves, without the training: 90, 91, 92 % for seeds 0, 1, 2."""
    facts = {key: trial[key] for key in ("config", "method", "dataset", "seed", "precision", "epochs")}
    top1 = 90.0 + trial["seed"]
    measured = {"top1": top1, "best_top1": top1 + 0.5, "best_epoch": 7, "top5": 99.0, "seconds": 4.0}
    return save_results(directory_of(trial), facts | measured | {"mode": "train", "options": trial})


class Runs:
    """Stands for the job of a configuration, and remembers the trials that it was asked for."""

    def __init__(self, job=train):
        self.job = job
        self.asked: list[dict] = []

    def __call__(self, trial: dict) -> dict:
        self.asked.append(trial)
        return self.job(trial)

    @property
    def seeds(self) -> list[int]:
        return [trial["seed"] for trial in self.asked]


def test_every_seed_has_a_directory_and_they_have_a_mean(config, folder):
    runs = Runs()
    content = run(config, runs)
    assert runs.seeds == [0, 1, 2]
    assert {path.parent.name for path in folder.glob(f"*/{RESULTS}")} == {"seed0", "seed1", "seed2"}
    assert load_json(folder / TRIALS) == content
    summary = content["summaries"]["train"]
    assert content["seeds"] == [0, 1, 2]
    assert summary["mean"] == pytest.approx({"top1": 91, "best_top1": 91.5, "top5": 99, "seconds": 4})
    assert summary["std"] == pytest.approx({"top1": 1, "best_top1": 1, "top5": 0, "seconds": 0})


def test_the_table_has_a_line_for_each_seed_and_two_for_all(config):
    lines = format_summary(run(config, Runs())["summaries"]["train"]).splitlines()
    assert [line.split()[0] for line in lines] == ["seed", "0", "1", "2", "mean", "std"]
    assert lines[4].split()[1:3] == ["91.00", "91.50"] and lines[5].split()[1] == "1.00"


@pytest.mark.parametrize(("num_classes", "is_shown"), [(3, False), (5, False), (6, True), (None, True)])
def test_top5_stands_in_the_table_where_it_says_something(num_classes, is_shown, config):
    summary = run(config, Runs())["summaries"]["train"]
    heading = format_summary(summary, num_classes=num_classes).splitlines()[0].split()
    assert ("top5" in heading) == is_shown and "top1" in heading


def test_figures_of_classifiers_that_nothing_has_trained_say_so(config, folder):
    def blind(trial: dict) -> dict:
        results = train(trial)
        untrained = {"top1": results["top1"], "classifier": "untrained"}
        measured = {"evaluations": {"last": untrained}, "linear_probe": {"last": {"top1": 80.0}}}
        return save_results(directory_of(trial), results | measured | {"classifier": "untrained"})

    summaries = run(config, Runs(blind))["summaries"]
    assert load_json(folder / TRIALS)["summaries"] == summaries
    told = {name: format_summary(summary).splitlines()[-1] for name, summary in summaries.items()}
    said = "note: nothing has trained the classifiers, so their accuracy says nothing"
    assert told["train"] == told["evaluate last"] == said and told["probe last"].split()[0] == "std"
    assert "classifier" not in run(config | {"localpath": str(folder)}, Runs())["summaries"]["train"]


def test_one_seed_has_no_deviation(config):
    summary = run(config | {"trials": 0, "seeds": [4]}, Runs())["summaries"]["train"]
    assert summary["mean"]["top1"] == 94 and summary["std"] is None
    assert format_summary(summary).splitlines()[-1].split() == ["std", "-", "-", "-", "-"]


def test_finished_trials_are_left_alone(config, folder):
    run(config | {"trials": 2}, Runs())
    before = (folder / "seed0" / RESULTS).read_bytes()
    runs = Runs()
    content = run(config, runs)
    assert runs.seeds == [2] and content["seeds"] == [0, 1, 2]
    assert (folder / "seed0" / RESULTS).read_bytes() == before


def test_seeds_of_an_earlier_command_count_too(config):
    run(config | {"trials": 2}, Runs())
    assert run(config | {"trials": 0, "seeds": [7]}, Runs())["seeds"] == [0, 1, 7]


def test_of_trials_that_end_together_none_is_lost(config, folder, monkeypatch):
    """Another ends between what one has read and what it writes."""
    run(config | {"trials": 1}, Runs())
    others = ThreadPoolExecutor()
    ended = []

    def and_then_another_ends(directory: Path, seeds: list[int]) -> dict:
        content = _summarized(directory, seeds)
        if not ended:
            ended.append(others.submit(run, config | {"trials": 0, "seeds": [2]}, Runs()))
            wait(ended, timeout=0.3)
        return content

    monkeypatch.setattr(trials, "_summarized", and_then_another_ends)
    with others:
        run(config | {"trials": 0, "seeds": [1]}, Runs())
    assert ended[0].result()["seeds"] == load_json(folder / TRIALS)["seeds"] == [0, 1, 2]


@pytest.mark.parametrize("file", ["last.pth", "stopped.pth"])
def test_a_trial_that_was_broken_off_goes_on(file, config, folder):
    save_checkpoint(folder / "seed0" / file, {"epoch": 3, "config": config | {"seed": 0}})
    runs = Runs()
    run(config, runs)
    assert runs.seeds == [0, 1, 2] and runs.asked[0]["checkpoint"] == NEWEST
    assert [directory_of(trial) for trial in runs.asked] == [folder / f"seed{seed}" for seed in range(3)]


@pytest.mark.parametrize("file", [RESULTS, "last.pth", "stopped.pth"])
def test_a_trial_with_other_settings_is_refused(file, config, folder):
    earlier = config | {"epochs": 3, "seed": 0, "num_workers": 9}
    if file == RESULTS:
        train(earlier | {"seeds": [0]})
    else:
        save_checkpoint(folder / "seed0" / file, {"epoch": 3, "config": earlier})
    runs = Runs()
    with pytest.raises(ValueError, match=r"^seed 0: .*seed0 was trained with epochs=3 \(now 8\); move it away"):
        run(config, runs)
    assert runs.asked == []


def test_a_trial_with_other_settings_is_not_averaged(config):
    train(config | {"epochs": 3, "seed": 5, "seeds": [5]})
    assert run(config, Runs())["seeds"] == [0, 1, 2]


@pytest.mark.parametrize(
    "updates",
    [
        {"memmap": True, "memmap_dir": "scratch"},
        {"top": 1, "format": "json"},
        {"test_batch_size": 7, "num_workers": 0, "cuda": False, "deterministic": True, "cuda_graph": True},
        {"data_dir": "elsewhere"},
    ],
)
def test_options_that_do_not_bear_on_results_are_not_compared(updates, config):
    run(config, Runs())
    runs = Runs()
    run(config | updates, runs)
    assert runs.asked == []


@pytest.mark.parametrize("updates", [{"precision": "bf16"}, {"teacher_weights": "other.pth"}, {"num_words": 8}])
def test_options_that_do_are(updates, tmp_path):
    config = main_classification.default_config("digits.RN14_RN8.QuEST") | {"localpath": str(tmp_path), "trials": 2}
    run(config, Runs())
    with pytest.raises(ValueError, match=f"seed0 was trained with {next(iter(updates))}="):
        run(config | updates, Runs())


def test_another_folder_of_images_is_another_data_set(tmp_path):
    config = main_classification.default_config("ImageFolder.RN8") | {"localpath": str(tmp_path), "trials": 2}
    run(config | {"data_dir": "cats"}, Runs())
    run(config | {"data_dir": "./cats/"}, Runs())
    with pytest.raises(ValueError, match=r"seed0 was trained with data_dir='cats' \(now 'dogs'\); move it away"):
        run(config | {"data_dir": "dogs"}, Runs())


@pytest.mark.parametrize("name", ["seed0.old", "seed3_1", "seed03", "seed²", "seeds"])
def test_a_folder_that_was_moved_away_is_no_trial(name, config, folder):
    run(config | {"trials": 1}, Runs())
    (folder / "seed0").rename(folder / name)
    runs = Runs()
    assert run(config, runs)["seeds"] == runs.seeds == [0, 1, 2]


def test_every_option_of_the_entry_is_placed():
    """A new option bears on results until `results/settings.py` says that it does not."""
    assert set(settings.bearing(ENTRY_OPTIONS)) == {"precision", "max_patches", "sync_bn", "view_seed"}


def test_an_option_that_a_later_version_brought_changes_nothing(config, folder):
    run(config, Runs())
    results = load_json(folder / "seed0" / RESULTS)
    del results["options"]["momentum"]
    save_json(folder / "seed0" / RESULTS, results)
    runs = Runs()
    run(config, runs)
    assert runs.asked == []


def fail(trial: dict) -> dict:
    if trial["seed"] == 1:
        raise FloatingPointError("loss became nan in epoch 2")
    return train(trial)


def test_a_failing_seed_stops_with_its_number_and_the_others_stay(config, folder):
    with pytest.raises(ValueError, match=r"^seed 1: loss became nan in epoch 2$"):
        run(config, Runs(fail))
    assert (folder / "seed0" / RESULTS).is_file() and not (folder / TRIALS).exists()
    runs = Runs()
    run(config, runs)
    assert runs.seeds == [1, 2]


def stop(trial: dict) -> dict:
    if trial["seed"] == 2:
        raise KeyboardInterrupt
    return train(trial)


def test_after_a_stop_the_same_command_does_the_rest(config):
    with pytest.raises(KeyboardInterrupt):
        run(config, Runs(stop))
    runs = Runs()
    assert run(config, runs)["seeds"] == [0, 1, 2]
    assert runs.seeds == [2]
    words = ["main.py", "with", f"config={NAME}", "trials=3"]
    assert main_classification.continuation(words, has_state=False) == " ".join(words)


def test_a_run_without_trials_is_none_of_them(config, folder):
    train(config | {"trials": 0, "epochs": 5})
    before = (folder / RESULTS).read_bytes()
    runs = Runs()
    run(config, runs)
    assert runs.seeds == [0, 1, 2] and (folder / RESULTS).read_bytes() == before


def evaluate(trial: dict) -> dict:
    path = directory_of(trial) / RESULTS
    measured = {"top1": 80.0 + trial["seed"], "top5": 98.0, "loss": 0.5, "epoch": 8, "split": "eval"}
    results = load_json(path) | {"evaluations": {"last": measured}}
    save_json(path, results)
    return results


def test_evaluations_are_averaged_beside_the_training(config, folder):
    run(config, Runs())
    content = run(config | {"evaluate": True}, Runs(evaluate))
    assert content["summaries"]["evaluate last"]["mean"] == pytest.approx({"top1": 81, "top5": 98, "loss": 0.5})
    assert content["summaries"]["train"]["mean"]["top1"] == 91


def test_what_is_not_trained_is_not_evaluated(config):
    run(config | {"trials": 1}, Runs())
    with pytest.raises(ValueError, match=r"^seed 1: .*seed1 is not finished; .* the same command without evaluate=$"):
        run(config | {"evaluate": True}, Runs(evaluate))


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ({"trials": 3, "seeds": [1]}, "leave out one"),
        ({"trials": 3, "seed": 1}, "leave out seed=1"),
        ({"seeds": [1, 1]}, "different whole numbers"),
        ({"seeds": [-1]}, "different whole numbers"),
        ({"seeds": [True]}, "different whole numbers"),
        ({"seeds": ["a"]}, "different whole numbers"),
        ({"seeds": [2**32]}, "different whole numbers"),
        ({"trials": -1}, "at least 0"),
        ({"trials": 3, "kmeans": 8}, "kmeans is shared by all trials"),
        ({"seeds": [1], "LDA": 5}, "LDA is shared by all trials"),
        ({"trials": 3, "checkpoint": 2}, "leave out checkpoint=2"),
        ({"watch": True}, "report with watch=True"),
    ],
)
def test_options_that_contradict_each_other_are_refused(updates, reason):
    with pytest.raises(ValueError, match=reason):
        check_options(main_classification.default_config(NAME) | updates)


def test_a_trial_is_the_run_with_its_seed(few_digits, tmp_path, capsys):
    def run(*words: str) -> None:
        argv = ["main.py", "with", f"config={NAME}", "image_size=8", "epochs=1", "cuda=False", *words]
        assert main_classification.main([*argv, f"localpath={tmp_path}"]) == 0

    run("seeds=[0,1]")
    run("seed=1")
    run("seeds=[0,1]", "evaluate=True")
    whole, trial = (load_checkpoint(tmp_path / "digits/RN8" / place / "last.pth") for place in ("", "seed1"))
    assert all(torch.equal(whole["model"][name], tensor) for name, tensor in trial["model"].items())
    results = json.loads((tmp_path / "digits/RN8/seed1" / RESULTS).read_text())
    assert results["evaluations"]["last"]["top1"] == results["top1"]
    assert "digits.RN8, evaluate last" in capsys.readouterr().out


@pytest.mark.parametrize("updates, is_said", [
    ({}, True), ({"view_seed": 0}, False), ({"teacher_cache": None}, False), ({"trials": 1}, False),
])  # fmt: skip
def test_seeds_that_could_share_a_cache_are_told_how(updates, is_said, tmp_path, caplog):
    options = {"localpath": str(tmp_path), "trials": 3, "teacher_cache": "logits"} | updates
    with caplog.at_level("INFO", logger="letKD.run"):
        run(main_classification.default_config("digits.RN14_RN8.KD") | options, train)
    assert ("view_seed=0 lets the seeds share one cache" in caplog.text) is is_said
