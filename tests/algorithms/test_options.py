"""What every option may be, and which job reads it: refused before any work starts, with the reason."""

from typing import Any

import pytest

import main_classification
from algorithms import check_options
from config.options import OPTIONS
from config.schema import EVERY_JOB, JOBS
from config.updates import check_command

PAIR = "digits.RN14_RN8.letKD-2"


def refusal(name: str = PAIR, **updates: Any) -> str:
    """The one line in which a configuration is refused."""
    defaults = main_classification.default_config(name)
    assert set(updates) <= set(defaults)
    with pytest.raises(ValueError) as caught:
        check_options(defaults | updates)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("updates", "reason"),
    [
        ({"cls_loss_coef": -1.0}, "cls_loss_coef=-1.0 must be at least 0"),
        ({"quest_loss_coef": -0.5}, "quest_loss_coef=-0.5 must be at least 0"),
        ({"sub_loss_coef": -1e-9}, "sub_loss_coef=-1e-09 must be at least 0"),
        ({"num_workers": 4_000_000_000}, "num_workers=4000000000 must be at most 1024"),
        ({"trials": 10_001}, "trials=10001 must be at most 10000"),
        ({"milestones": [True]}, r"milestones=[True] must be a list of epochs"),
        ({"milestones": [5, 0]}, r"milestones=[5, 0] must be a list of epochs"),
        ({"best": True, "checkpoint": 5}, "best=True and checkpoint=5 are two epochs"),
        ({"cuda_graph": True, "cuda": False}, "cuda_graph=True needs a GPU; leave out cuda=False"),
        ({"export_file": "a.onnx", "best": True}, "export_file=a.onnx is the network; leave out best=True"),
        ({"export_file": "a.onnx", "seeds": [1]}, "export_file=a.onnx is the network; leave out seeds=[1]"),
        ({"export_file": "a.onnx", "average": True}, "export_file=a.onnx is the network; leave out average=True"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov=True needs a momentum above 0"),
        ({"schedule": "cosin"}, "schedule='cosin' must be step or cosine or linear or constant"),
        ({"warmup": 1.0, "warmup_steps": 5}, "warmup=1 and warmup_steps=5 are both how long the learning rate rises"),
        (
            {"schedule": "linear", "final_learning_rate": 0.1},
            "final_learning_rate=0.1 must be at most learning_rate=0.05, from which schedule=linear falls",
        ),
        ({"schedule": "cosine", "learning_rate": 1e-3, "final_learning_rate": 2e-3}, "final_learning_rate=0.002 must"),
        ({"accumulate": 3}, "accumulate=3 must divide batch_size=64 into parts of at least 2 images"),
        ({"accumulate": 64}, "accumulate=64 must divide batch_size=64 into parts of at least 2 images"),
        ({"cuda_graph": True, "optimizer": "timm/lamb"}, "cuda_graph=True records steps of sgd and adamw alone"),
        ({"freeze": "conv1"}, "freeze='conv1' must be a list of patterns, like ['backbone.conv1'"),
        ({"clip_gradients": 0.0}, "clip_gradients=0.0 must be above 0"),
        ({"drop_path": 1.0}, "drop_path=1.0 must be at most 0.99"),
    ],
    ids=str,
)
def test_values_and_combinations_that_make_no_sense_are_refused(updates, reason):
    assert reason in refusal(**updates)


@pytest.mark.parametrize(
    "updates",
    [
        {"optimizer": "adamw", "momentum": 0.0},
        {"final_learning_rate": 0.1},
        {"schedule": "constant", "final_learning_rate": 0.1},
        {"schedule": "cosine", "final_learning_rate": 0.05},
    ],
    ids=str,
)
def test_what_no_optimizer_and_no_schedule_reads_is_not_refused(updates):
    check_options(main_classification.default_config(PAIR) | updates)


def test_the_weight_of_a_hint_is_not_negative():
    assert "fitnet.weight=-1" in refusal("CIFAR100.resnetv1.RN110_RN32.FitNet", **{"fitnet.weight": -1.0})


OTHER = {  # a value that is not the default
    "evaluate": True, "best": True, "testset": True, "export": "onnx", "probe": True, "layers": True, "kmeans": 8,
    "LDA": 5, "class_means": True, "average": True,
    "checkpoint": 3, "trials": 2, "seeds": [1], "fname": "a.pth", "max_patches": 9, "incremental": True,
    "images": "photographs", "export_file": "a.onnx", "top": 3, "format": "json",
}  # fmt: skip


@pytest.mark.parametrize("job", EVERY_JOB)
@pytest.mark.parametrize("option", [name for name, said in OPTIONS.items() if said.refused])
def test_a_job_refuses_what_it_does_not_read(job, option):
    config = main_classification.default_config(PAIR) | {option: OTHER[option]}
    readers = OPTIONS[option].jobs
    if job in readers:
        check_command(job, config)
        return
    with pytest.raises(ValueError, match=f"{option}(=| is for)") as caught:
        check_command(job, config)
    assert all(reader in str(caught.value) for reader in readers)


def test_any_job_may_be_told_how():
    told = {"cuda": False, "num_workers": 0, "prepare": True, "keep_every": 1, "memmap": True, "precision": "bf16"}
    for job in EVERY_JOB:
        check_command(job, main_classification.default_config(PAIR) | told)


def test_one_network_predicts():
    config = main_classification.default_config(PAIR) | {"seeds": [1, 2]}
    for job in ("predict", "pictures"):
        with pytest.raises(ValueError, match=r"seeds=\[1, 2\] are several networks"):
            check_command(job, config)
    check_command("train", config)


@pytest.mark.parametrize("updates", [{"best": True}, {"export": "onnx"}, {"epochs": 5}, {"cuda": False}], ids=str)
def test_the_report_reads_a_place_alone(updates):
    config = main_classification.default_config(PAIR) | {"watch": True, "localpath": "elsewhere"}
    check_command("report", config)
    with pytest.raises(ValueError, match="is not for the report, which reads localpath and watch alone"):
        check_command("report", config | updates)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (
            ["predict", "with", "images=nowhere", "testset=True"],
            "testset=True concerns evaluate and probe and layers and pictures",
        ),
        (["predict", "with", "images=nowhere", "kmeans=8"], "kmeans=8 concerns kmeans only"),
        (["picture_usage", "with", "max_patches=8"], "max_patches=8 concerns kmeans and LDA only"),
        (["report", "with", "best=True"], "best=True is not for the report"),
        (["with", "top=3"], "top is for predict: python main_classification.py predict with top="),
        (["with", "kmeans=8", "checkpoint=3"], "checkpoint=3 concerns train"),
    ],
    ids=str,
)
def test_commands_ask_before_they_work(words, reason, tmp_path, capsys):
    """Before a network is looked for, of which there is none."""
    assert main_classification.main(["main.py", *words, f"localpath={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"error: {reason}") and error.count("\n") == 1, error


def test_options_are_read_by_jobs_that_exist():
    for name, said in OPTIONS.items():
        assert said.jobs and set(said.jobs) <= set(JOBS), name
    assert [name for name, said in OPTIONS.items() if "report" in said.jobs] == ["config", "localpath", "watch"]
