"""Results that would be quietly wrong: measured otherwise, of another run, of other classes or teachers."""

import itertools
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from training_tools import configure, train

import main_classification
from algorithms import check_options, run_config, run_trials
from algorithms.evaluate import Evaluation, result_name
from algorithms.export import Export
from algorithms.predict import Prediction
from algorithms.teaching import FINGERPRINTS
from architectures import create_model
from config.options import Options
from dataloaders import Dataset
from engine.checkpoints import load_checkpoint, save_checkpoint, set_aside
from engine.records import read_results, save_results
from engine.weights import check_belongs, read_published
from results.settings import MEASUREMENTS, changed_network, name_of_changes, num_images
from storage.state_dicts import check_fit
from storage.tensor_files import save_json

pytestmark = pytest.mark.usefixtures("few_digits")


@pytest.fixture(scope="module")
def runs(few_digits, tmp_path_factory) -> dict[int, Path]:
    """Two runs of one experiment with other seeds, each in a localpath of its own."""
    return {
        seed: train("classification", tmp_path_factory.mktemp(f"seed{seed}"), epochs=1, seed=seed, keep_every=1)
        for seed in (0, 1)
    }


@pytest.fixture
def folder(runs, tmp_path) -> Path:
    """The run of seed 0, to be changed."""
    return Path(shutil.copytree(runs[0], tmp_path / "digits/RN8"))


def run(folder: Path, **updates) -> dict:
    return run_config(configure("classification", folder.parent.parent, **{"epochs": 1} | updates))


# -- measurements with other options ------------------------------------------------------------------------------

OTHERWISE = [{"mean": [0, 0, 0]}, {"std": [1, 1, 1]}, {"image_size": 12}, {"precision": "bf16"}]


@pytest.mark.parametrize("updates", OTHERWISE, ids=str)
@pytest.mark.parametrize("job", [{"evaluate": True}, {"probe": True}], ids=str)
def test_what_is_measured_otherwise_is_kept_apart(job, updates, folder):
    part = {"evaluate": "evaluations", "probe": "linear_probe"}[next(iter(job))]
    run(folder, **job)
    before = read_results(folder)
    run(folder, **job | updates)
    after = read_results(folder)
    (name,) = set(after[part]) - {"last"}
    key = next(iter(updates))
    assert name.startswith(f"last-{key}-") and after[part][name]["changed"][key][1] == updates[key]
    assert after[part]["last"] == before[part]["last"] and "changed" not in after[part]["last"]
    assert {key: after[key] for key in ("top1", "options")} == {key: before[key] for key in ("top1", "options")}


def test_options_of_the_training_alone_measure_the_run_itself(folder):
    run(folder, evaluate=True, learning_rate=0.5, batch_size=8, val_split=20, test_batch_size=7)
    assert set(read_results(folder)["evaluations"]) == {"last"}


def test_a_file_that_is_called_like_the_runs_own_does_not_take_its_place(folder, runs):
    run(folder, evaluate=True)
    run(folder, evaluate=True, weights=str(runs[1] / "last.pth"))
    evaluations = read_results(folder)["evaluations"]
    own, other = sorted(evaluations, key=len)
    assert own == "last" and other.startswith("last-weights-")
    assert evaluations["last"]["weights"] == str(folder / "last.pth")


@pytest.mark.parametrize("job", [{"evaluate": True}, {"probe": True}], ids=str)
def test_files_of_one_name_do_not_take_each_others_places(job, folder, runs):
    part = {"evaluate": "evaluations", "probe": "linear_probe"}[next(iter(job))]
    first, second = (folder.parent / name / "net.pth" for name in "ab")
    for path, seed in ((first, 0), (second, 1)):
        path.parent.mkdir()
        shutil.copy(runs[seed] / "last.pth", path)
    for path in (first, second, first):
        run(folder, **job, weights=str(path))
    found = read_results(folder)[part]
    one, other = sorted(found, key=len)
    assert one == "net" and re.fullmatch(r"net-weights-[0-9a-f]{8}", other)
    assert [found[name]["weights"] for name in (one, other)] == [str(first), str(second)]
    before = found[other]
    run(folder, **job, weights=str(second))
    assert set(read_results(folder)[part]) == {one, other}, "measured again it has the name that it had"
    assert read_results(folder)[part][other]["weights"] == before["weights"]


@pytest.mark.parametrize("choice", [{"best": True}, {"checkpoint": 1}], ids=str)
@pytest.mark.parametrize("job", [{"evaluate": True}, {"probe": True}, {"export": "pt2"}, {"images": "a.png"}], ids=str)
def test_a_file_has_no_epochs_to_choose_from(job, choice, folder, tmp_path):
    """One of another run, and the published one of an experiment that was not trained; -1 is what there is."""
    file = str(shutil.copy(folder / "last.pth", tmp_path / "net.pth"))
    (option,) = (f"{key}={value}" for key, value in choice.items())
    said = rf"^{option} is of a run's own checkpoints, and {re.escape(file)} is none of them: leave it out, or name"
    before = sorted(folder.iterdir())
    for updates in ({"weights": file}, {"published_weights": file, "name": "mine.own"}):
        config = configure("classification", tmp_path, **{"epochs": 1} | job | choice | updates)
        with pytest.raises(ValueError, match=said):
            Prediction(Options.of(config)).run() if "images" in job else run_config(config)
        assert sorted(folder.iterdir()) == before and not (tmp_path / "mine").exists()
    if "evaluate" in job and "checkpoint" in choice:
        assert run_config(config | {"checkpoint": -1})["weights"] == file


@pytest.mark.parametrize(
    ("choice", "kept"),
    [({"best": True}, "best.pth"), ({"checkpoint": 1}, "epoch_1.pth"), ({"checkpoint": 1}, "best.pth")],
    ids=str,
)
@pytest.mark.parametrize("job", [{"evaluate": True}, {"probe": True}, {"export": "pt2"}, {"images": "a.png"}], ids=str)
def test_what_a_run_has_kept_is_enough(job, choice, kept, folder, tmp_path):
    """The newest checkpoint was deleted to have its room, or did not come along; a published one is none of the run."""
    published = shutil.copy(folder / "last.pth", tmp_path / "net.pth")
    for path in folder.glob("*.pth"):
        if path.name != kept:
            path.unlink()
    config = configure("classification", tmp_path, **{"epochs": 1, "published_weights": str(published)} | job | choice)
    if "images" in job:
        Image.new("L", (8, 8)).save(tmp_path / "a.png")
        image = {"images": str(tmp_path / "a.png"), "format": "json"}
        assert Prediction(Options.of(config | image)).run()["network"] == str(folder / kept)
        return
    (measured,) = run_config(config)[MEASUREMENTS[next(iter(job))]].values()
    assert (measured["weights"], measured["epoch"]) == (str(folder / kept), 1)


@pytest.mark.parametrize("kind", ["onnx", "pt2"])
def test_what_is_exported_of_files_of_one_name_is_in_two_files(kind, folder, tmp_path):
    """A name that was exported in the other format is free."""
    job = Export(Options.of(configure("classification", tmp_path, export=kind, weights="b/net.pth")))
    about = {"weights": "b/net.pth", "changed": {"weights": [str(folder / "last.pth"), "b/net.pth"]}}
    save_results(folder, read_results(folder) | {"exports": {"net.pt2": {"weights": "a/net.pth"}}})
    assert (result_name(about, job._standing(kind)) == "net") == (kind == "onnx")


def test_without_a_training_the_results_stay_those_of_the_published_weights(folder, tmp_path):
    published = str(shutil.copy(folder / "last.pth", tmp_path / "published.pth"))
    shutil.rmtree(folder)
    run(folder, evaluate=True, published_weights=published)
    own = read_results(folder)
    run(folder, evaluate=True, published_weights=published, mean=[0, 0, 0])
    results = read_results(folder)
    assert results["top1"] == own["top1"] and results["options"]["mean"] is None
    assert len(results["evaluations"]) == 2


def test_an_evaluation_keeps_nothing_of_the_one_whose_place_it_takes(folder, monkeypatch):
    """But what else was measured: beside a training that goes on there are no results of its own."""
    (folder / "results.json").unlink()
    run(folder, probe=True)
    run(folder, evaluate=True)
    first = read_results(folder)
    unknown = {"average": True, "classifier": "untrained", "finished": "2020-01-01T00:00:00+00:00"}
    save_results(folder, first | unknown | {"environment": {"cpus": 0}})
    monkeypatch.setattr("sys.argv", ["main_classification.py", "again"])
    run(folder, evaluate=True, checkpoint=1)
    second = read_results(folder)
    assert second.keys() == first.keys() and second["command"] == "main_classification.py again"
    assert second["finished"] > unknown["finished"] and second["environment"] == first["environment"]
    assert second["linear_probe"] == first["linear_probe"]
    assert second["evaluations"].keys() == {"last", "epoch_1"}


def test_names_follow_from_what_differs_alone():
    changed = {"mean": (None, [0, 0, 0]), "alpha_penultimate": (1.0, 0.1)}
    name = name_of_changes(changed)
    assert (
        name == name_of_changes(dict(reversed(changed.items()))) == name_of_changes(changed | {"mean": (1, [0, 0, 0])})
    )
    assert name != name_of_changes(changed | {"alpha_penultimate": (1.0, 0.2)}) and "/" not in name
    assert name_of_changes({}) == ""


def test_every_option_bears_on_a_measurement_unless_it_is_known_not_to():
    own = main_classification.default_config("digits.RN14_RN8.letKD-2")
    found = changed_network(own | {"of_my_method": 1}, own | {"of_my_method": 2, "alpha_intermediate": 3, "epochs": 99})
    assert set(found) == {"of_my_method", "alpha_intermediate"}


# -- files of another run -----------------------------------------------------------------------------------------

JOBS = {
    "evaluate": {"evaluate": True},
    "best": {"evaluate": True, "best": True},
    "kept": {"evaluate": True, "checkpoint": 1},
    "probe": {"probe": True},
    "export": {"export": "pt2"},
    "continue": {"checkpoint": -1, "epochs": 2},
    "kmeans": {"kmeans": 4},
}


@pytest.mark.parametrize("job", JOBS)
def test_weights_of_another_run_are_refused(job, folder, runs):
    for name in ("last.pth", "best.pth", "epoch_1.pth"):
        shutil.copy(runs[1] / name, folder / name)
    results = (folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"is not of the run that .*results\.json tells of .*; put that run's own"):
        run(folder, **JOBS[job])
    assert (folder / "results.json").read_bytes() == results


def test_the_best_of_another_run_is_refused_where_a_run_goes_on(folder, runs):
    shutil.copy(runs[1] / "best.pth", folder)
    foreign = (folder / "best.pth").read_bytes()
    with pytest.raises(ValueError, match=r"best\.pth is not of this run \(other figures of epoch 1\)"):
        run(folder, checkpoint=-1, epochs=2)
    assert (folder / "best.pth").read_bytes() == foreign
    (folder / "best.pth").unlink()
    assert run(folder, checkpoint=-1, epochs=2)["epochs"] == 2


def test_results_of_another_run_are_refused_and_without_them_the_weights_are_taken(folder, runs):
    shutil.copy(runs[1] / "results.json", folder)
    with pytest.raises(ValueError, match="is not of the run"):
        run(folder, evaluate=True)
    (folder / "results.json").unlink()
    assert run(folder, evaluate=True)["mode"] == "evaluate"


def test_results_that_record_less_are_accepted(folder, runs):
    """Neither history nor fingerprint: an older version's."""
    told = {key: value for key, value in read_results(runs[1]).items() if key not in ("history", "fingerprint")}
    save_json(folder / "results.json", told)
    check_belongs(folder / "last.pth", load_checkpoint(folder / "last.pth"))


def test_weights_alone_tell_two_runs_apart(folder, runs):
    """With the figures of this run and the weights of another the fingerprint is left."""
    path = folder / "last.pth"
    content = load_checkpoint(path) | {"model": load_checkpoint(runs[1] / "last.pth")["model"]}
    with pytest.raises(ValueError, match=r"weights .*\.\.\. instead of"):
        check_belongs(path, content)


# -- the data of a run that goes on -------------------------------------------------------------------------------


def test_other_classes_are_refused_and_other_images_mentioned(folder, caplog):
    path = folder / "last.pth"
    content = load_checkpoint(path)
    images = content["data"]["images"]
    changed = images | {"train": {"number": 7, "sha256": "0" * 64}}
    save_checkpoint(path, content | {"data": content["data"] | {"images": changed}})
    with caplog.at_level("INFO", logger="letKD.run"):
        run(folder, checkpoint=-1)
    assert "images were added, removed or replaced since the training (train: 7 then" in caplog.text
    classes = [*reversed(content["data"]["classes"])]
    save_checkpoint(path, content | {"data": content["data"] | {"classes": classes}})
    with pytest.raises(ValueError, match=r"last\.pth was trained on 10 classes.*class 0 was '9' and is '0'"):
        run(folder, checkpoint=-1, epochs=2)


# -- measurements beside a run that does not stand still ----------------------------------------------------------


def begins_again(folder: Path, other: Path) -> None:
    set_aside(folder)


def is_replaced(folder: Path, other: Path) -> None:
    set_aside(folder)
    shutil.copytree(other, folder, dirs_exist_ok=True)


def goes_back(folder: Path, other: Path) -> None:
    checkpoint = load_checkpoint(folder / "last.pth")
    save_checkpoint(folder / "last.pth", checkpoint | {"epoch": 0, "history": []})


MEASURING = [{"evaluate": True}, {"probe": True}, {"export": "pt2"}]


@pytest.fixture(params=MEASURING, ids=str)
def measure(request, folder, monkeypatch) -> Callable[[Callable[[], None]], dict]:
    """A job on the run in `folder`, while something happens in there."""

    def measure(happens: Callable[[], None]) -> dict:
        opened = Evaluation._open_images

        def open_images(self: Evaluation, *args: Any) -> Dataset:
            happens()
            return opened(self, *args)

        monkeypatch.setattr(Evaluation, "_open_images", open_images)
        return run(folder, **request.param)

    return measure


@pytest.mark.parametrize("happens", [begins_again, is_replaced, goes_back])
def test_what_was_measured_on_a_run_that_is_no_more_is_not_recorded(happens, measure, folder, runs):
    with pytest.raises(ValueError, match="has begun again, or gone back, while its weights were measured"):
        measure(lambda: happens(folder, runs[1]))
    found = read_results(folder)
    assert not any(found.get(part) for part in MEASUREMENTS.values()) and found.get("mode", "train") == "train"
    assert not (folder / "export").exists()


def test_what_was_measured_on_a_run_that_goes_on_is_recorded(measure, folder):
    def goes_on() -> None:
        checkpoint = load_checkpoint(folder / "last.pth")
        later = {"epoch": 2, "history": [*checkpoint["history"], checkpoint["history"][0] | {"epoch": 2}]}
        save_checkpoint(folder / "last.pth", checkpoint | later)

    measure(goes_on)
    assert any(read_results(folder).get(part) for part in MEASUREMENTS.values())


@pytest.mark.parametrize("before", [{}, {"evaluate": True}], ids=["the first", "again"])
def test_what_was_measured_before_the_last_epoch_is_not_recorded_behind_it(before, measure, folder):
    """The training has ended meanwhile: nobody would take it away again."""
    if before:
        run(folder, **before)
    with pytest.raises(ValueError, match="has ended with later epochs while these weights were measured"):
        measure(lambda: run(folder, epochs=2, checkpoint=-1))
    assert not any(read_results(folder).get(part) for part in MEASUREMENTS.values())


def test_a_kept_epoch_is_measured_beside_a_damaged_last_one(folder, caplog):
    run(folder, epochs=2, checkpoint=-1, keep_every=1)
    (folder / "last.pth").write_bytes(b"damaged")
    with caplog.at_level("INFO", logger="letKD.run"):
        run(folder, evaluate=True, checkpoint=2)
    assert "going on from" not in caplog.text
    assert len(read_results(folder)["evaluations"]) == 1


def test_a_run_that_was_killed_behind_going_back_is_measured(folder):
    """Its results are still those of the epochs that it has left."""
    run(folder, epochs=2, checkpoint=-1, keep_every=1)
    shutil.copy(folder / "epoch_1.pth", folder / "last.pth")
    run(folder, evaluate=True)
    assert read_results(folder)["evaluations"]["last"]["epoch"] == 1


@pytest.mark.parametrize("entry", ["", "#model"])
def test_the_runs_own_file_by_its_name_is_of_its_epoch(entry, folder):
    run(folder, evaluate=True, weights=f"{folder / 'last.pth'}{entry}")
    (measured,) = read_results(folder)["evaluations"].values()
    assert measured["epoch"] == 1
    run(folder, epochs=2, checkpoint=-1)
    assert read_results(folder)["evaluations"] == {}


# -- trials -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_trials_that_started_from_two_files_are_refused_before_one_trains(job, tmp_path):
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 3}
    put_trials(config, [{"init_fingerprint": "a" * 64}, {}, {"init_fingerprint": "b" * 64}])
    message = "the weights that it started from: .*seed0 started from aaa.*seed2 has bbb.*of two starts; move .*seed0"
    with pytest.raises(ValueError, match=message):
        run_trials(Options.of(config | {"evaluate": job == "evaluate"}), lambda trial: pytest.fail("a trial has begun"))


def test_a_trial_that_is_left_must_start_from_the_weights_of_those_before(tmp_path):
    """The file at the same place is another one by now."""
    path = tmp_path / "start.pth"
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 2}
    config |= {"init": str(path)}
    torch.manual_seed(0)
    torch.save(create_model("resnet8", num_classes=10).state_dict(), path)
    put_trials(config, [{"init_fingerprint": read_published(path).fingerprint}])
    begun = []
    run_trials(Options.of(config), begun.append)
    assert [trial.run.seed for trial in begun] == [1]
    torch.save(create_model("resnet8", num_classes=10).state_dict(), path)
    with pytest.raises(ValueError, match=r"started from: .*seed0 .*what is there for the trials that are left has"):
        run_trials(Options.of(config), lambda trial: pytest.fail("a trial has begun"))


@pytest.mark.parametrize("key", FINGERPRINTS)
@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_trials_that_two_teachings_have_made_are_refused_before_one_trains(key, job, tmp_path):
    config = main_classification.default_config("digits.RN14_RN8.letKD-2") | {"localpath": str(tmp_path), "trials": 3}
    put_trials(config, [{key: "a" * 64}, {}, {key: "b" * 64}])
    with pytest.raises(ValueError, match=f"{FINGERPRINTS[key]}: .*seed0 was taught by aaa.*seed2 has bbb"):
        run_trials(Options.of(config | {"evaluate": job == "evaluate"}), lambda trial: pytest.fail("a trial has begun"))


@pytest.mark.parametrize("key", FINGERPRINTS)
def test_a_trial_that_is_left_must_have_the_teacher_of_those_before(key, tmp_path, monkeypatch):
    config = main_classification.default_config("digits.RN14_RN8.letKD-2") | {"localpath": str(tmp_path), "trials": 2}
    put_trials(config, [{key: "a" * 64}])
    monkeypatch.setattr("algorithms.trials.supervision_fingerprints", lambda config: {key: "b" * 64})
    with pytest.raises(ValueError, match="what is there for the trials that are left has bbb"):
        run_trials(Options.of(config), lambda trial: pytest.fail("a trial has begun"))
    assert run_trials(Options.of(config | {"trials": 1}), pytest.fail)["seeds"] == [
        0
    ]  # nothing is left, nothing is mixed


def test_a_trial_of_another_teacher_that_is_not_asked_for_is_left_out_and_said(tmp_path, caplog):
    config = main_classification.default_config("digits.RN14_RN8.letKD-2") | {"localpath": str(tmp_path), "trials": 2}
    put_trials(config, [{"teacher_fingerprint": digit * 64} for digit in "aab"])
    with caplog.at_level("INFO", logger="letKD.run"):
        assert run_trials(Options.of(config), pytest.fail)["seeds"] == [0, 1]
    assert "seed 2 is left out: not the same are the teacher's weights" in caplog.text


@pytest.mark.parametrize("job", ["train", "evaluate"])
def test_trials_on_a_part_and_on_the_whole_of_a_data_set_are_refused(job, tmp_path):
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 3}
    numbers = [{"train": 898, "eval": 899}, None, {"train": 100, "eval": 899}]
    put_trials(config, [{"num_images": number} for number in numbers])
    with pytest.raises(ValueError, match=r"seed0 had 898 training images, and .*seed2 has 100: .*of two data sets"):
        run_trials(Options.of(config | {"evaluate": job == "evaluate"}), lambda trial: pytest.fail("a trial has begun"))


def test_a_trial_of_fewer_images_that_is_not_asked_for_is_left_out_and_said(tmp_path, caplog):
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 2}
    put_trials(config, [{"num_images": {"train": 898, "eval": number}} for number in (899, 899, 40)])
    with caplog.at_level("INFO", logger="letKD.run"):
        assert run_trials(Options.of(config), pytest.fail)["seeds"] == [0, 1]
    assert "seed 2 is left out: not the same are number of evaluation images" in caplog.text


def test_a_trial_on_other_numbers_of_images_than_those_before_is_refused_before_it_trains(few_digits, tmp_path):
    config = configure("classification", tmp_path, epochs=1, trials=2)
    put_trials(config, [{"num_images": {"train": 7, "eval": 899}}])
    with pytest.raises(ValueError, match=r"seed 1: .*seed0 had 7 training images, and this trial has [0-9]+: "):
        run_config(config)
    assert not (tmp_path / "digits/RN8/seed1/last.pth").exists()
    put_trials(config, [{"num_images": {"train": 7, "eval": 899}, "options": config | {"learning_rate": 9.0}}])
    run_config(config | {"trials": 0, "seeds": [1]})  # which is left out of its mean anyway
    assert (tmp_path / "digits/RN8/seed1/last.pth").is_file()


def test_evaluations_of_other_numbers_of_images_are_not_averaged(tmp_path, caplog):
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 3}
    told = [{"top1": 80.0 + seed, "num_images": {"eval": number}} for seed, number in enumerate((899, 899, 40))]
    put_trials(config, [{"evaluations": {"last": measured}} for measured in told])
    with caplog.at_level("INFO", logger="letKD.run"):
        summaries = run_trials(Options.of(config), pytest.fail)["summaries"]
    assert summaries["evaluate last"]["mean"]["top1"] == 80.5 and list(summaries["train"]["seeds"]) == ["0", "1", "2"]
    assert "evaluate last of seed 2 is left out: of 40 evaluation images and not 899" in caplog.text


def test_trainings_and_evaluations_say_how_many_images_they_had(runs, folder):
    run(folder, evaluate=True)
    trained = read_results(folder)
    data = load_checkpoint(folder / "last.pth")["data"]["images"]
    assert trained["num_images"] == {name: images["number"] for name, images in data.items()} == num_images_of(folder)
    assert trained["evaluations"]["last"]["num_images"] == {"eval": data["eval"]["number"]}


def num_images_of(folder: Path) -> dict[str, int]:
    """As the checkpoint of a run that has no results yet tells them."""
    return num_images(load_checkpoint(folder / "last.pth"))


def test_results_of_another_seed_are_refused(tmp_path):
    config = main_classification.default_config("digits.RN8") | {"localpath": str(tmp_path), "trials": 2}
    put_trials(config, [{}, {"seed": 0}])
    with pytest.raises(ValueError, match=r"seed 1: .*seed1/results.json is not of this trial: it has .* of seed 0"):
        run_trials(Options.of(config), pytest.fail)


def put_trials(config: dict, facts: list[dict]) -> None:
    """Finished trials of the seeds 0, 1, ... with facts of their own."""
    figures = dict.fromkeys(("top1", "best_top1", "top5", "seconds"), 90.0)
    about = {key: config[key] for key in ("config", "method", "dataset", "epochs", "precision")}
    for seed, own in enumerate(facts):
        directory = Path(config["localpath"], *config["config"].split("."), f"seed{seed}")
        options = config | {"seed": seed, "seeds": [seed], "trials": 0}
        save_results(directory, about | figures | {"mode": "train", "seed": seed, "options": options} | own)


# -- names that the program uses ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "results.json", "Results.JSON", "log.txt", "LOG.TXT", ".lock", "progress.json", "trials.json", "last.pth",
        ".words.pth.12.part", "words.part", "tensorboard", "Replaced", "export", "pictures", "seed3", "", ".", "..",
        "a/b", "a\0b", "w" * 250, "w\ud800", "final_scores_8.npy", "a_folder",
        "codebook_K16.pth", "Codebook_K8.pth", "vector_quantizer_kmeansK8_net_epoch1", "decisions_layer3.0_S9_L60.pth",
    ],
)  # fmt: skip
@pytest.mark.parametrize("job", [{"kmeans": 8}, {"LDA": 5}], ids=str)
def test_names_that_cannot_be_a_result_are_refused_beforehand(name, job, tmp_path):
    config = configure("classification", tmp_path, fname=name, **job)
    for folder in ("VQ", "LDA"):
        (tmp_path / folder / "digits/RN8/a_folder").mkdir(parents=True)
    with pytest.raises(ValueError, match="fname="):
        check_options(config)
    for allowed in ("words.pth", "codebook_K8.pth.old", *(["codebook_K8.pth"] if "kmeans" in job else [])):
        check_options(config | {"fname": allowed})


@pytest.mark.parametrize("key", ["localpath", "memmap_dir"])
def test_a_file_is_no_folder(key, tmp_path):
    path = tmp_path / "a_file"
    path.write_text("")
    for value in (path, path / "below"):
        with pytest.raises(ValueError, match=f"{key}='.*' must be a folder, and .*a_file is a file"):
            check_options(configure("classification", tmp_path) | {key: str(value)})


# -- odd content of sound files -----------------------------------------------------------------------------------

NUMBERS = torch.ones(2, 2)
ODD_TENSORS = {
    "sparse": NUMBERS.to_sparse(),
    "sparse_csr": NUMBERS.to_sparse_csr(),
    "quantised": torch.quantize_per_tensor(NUMBERS, 0.1, 0, torch.qint8),
    "meta": NUMBERS.to("meta"),
    "nested": torch.nested.nested_tensor([NUMBERS, NUMBERS]),
    "whole": NUMBERS.long(),
    "bool": NUMBERS.bool(),
    "complex": NUMBERS.to(torch.complex64),
    "number": 3,
    "none": None,
    "list": [1.0],
}


@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_is_no_dense_numbers_is_named(kind):
    with pytest.raises(ValueError, match=r"a\.pth does not hold it: no dense numbers of that kind: weight \("):
        check_fit({"weight": NUMBERS}, {"weight": ODD_TENSORS[kind]}, source="a.pth", what="it")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_numbers_of_another_precision_are_taken(dtype):
    check_fit({"weight": NUMBERS}, {"weight": NUMBERS.to(dtype)}, source="a.pth", what="it")


ODD_VALUES = {"missing": None, "a text": "odd", "a list": [None], "a number": -3.5, "a dictionary": {"odd": [1]}}
ENTRIES = ("model", "losses", "optimizer", "random", "epoch", "epochs", "best", "history", "seconds", "config", "data")
READ_BY_ALL = ("model", "epoch", "epochs", "data")  # the other entries are for a training that goes on


def odd_checkpoints() -> Iterator[Any]:
    """All, for a training that goes on; for other jobs those of entries that they read, and one of each other entry."""
    for entry, odd, job in itertools.product(ENTRIES, ODD_VALUES, ("continue", "evaluate", "kmeans")):
        is_long = job != "continue" and entry not in READ_BY_ALL and odd != "a text"
        yield pytest.param(entry, odd, job, marks=[pytest.mark.slow] * is_long)


@pytest.mark.parametrize(("entry", "odd", "job"), list(odd_checkpoints()))
def test_odd_content_of_a_checkpoint_is_one_line(entry, odd, job, folder):
    path = folder / "last.pth"
    content = dict(load_checkpoint(path))
    content[entry] = ODD_VALUES[odd]
    if odd == "missing":
        del content[entry]
    save_checkpoint(path, content)
    (folder / "results.json").unlink()
    try:
        run(folder, **JOBS[job])
    except ValueError as error:
        assert str(path) in str(error)
    else:
        assert job != "continue" or (entry, odd) in ACCEPTED


ACCEPTED = {("history", "missing"), ("seconds", "a number"), ("epochs", "missing")}


ODD_PLACES = [
    *((("model", "conv1.weight"), odd) for odd in ODD_TENSORS if odd not in ("whole", "bool", "complex", "nested")),
    (("losses", "odd"), "list"),
    (("history", 0, "train", "loss"), "sparse"),
    (("history", 0, "epoch"), "complex"),
    (("config", "momentum"), "meta"),
    (("teacher_fingerprint",), "whole"),
    (("data", "mean", 0), "quantised"),
]


@pytest.mark.parametrize(("place", "odd"), ODD_PLACES, ids=str)
def test_odd_content_within_an_entry_is_one_line(place, odd, folder):
    path = folder / "last.pth"
    content = dict(load_checkpoint(path))
    *above, last = place
    entry = content
    for key in above:
        entry = entry[key]
    entry[last] = ODD_TENSORS[odd]
    save_checkpoint(path, content)
    for job in ({"checkpoint": -1, "epochs": 2}, {"evaluate": True}):
        with pytest.raises(ValueError, match=rf"{path} is damaged: .*{place[0]}"):
            run(folder, **job)


@pytest.mark.parametrize("number", [-1, 2**70])
@pytest.mark.parametrize("entry", ["epoch", "epochs"])
def test_numbers_of_epochs_have_bounds(entry, number, folder):
    path = folder / "last.pth"
    save_checkpoint(path, load_checkpoint(path) | {entry: number})
    with pytest.raises(ValueError, match=f"{path} is damaged: its entry '{entry}' is {number}"):
        run(folder, checkpoint=-1, epochs=2)
