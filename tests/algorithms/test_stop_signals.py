"""A process that gets real signals: SIGTERM, then Ctrl-C in what goes on, and in the end a run like any other."""

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

from training_tools import differences, outcome

import main_classification
from algorithms.checkpoints import load_checkpoint

ROOT = Path(main_classification.__file__).parent
# Two sessions in one process, whose start takes longer than they do.
SESSIONS = """
import sys, main_classification
for option in ("checkpoint=0", "checkpoint=-1"):
    print("status", main_classification.main(["main_classification.py", *sys.argv[1:], option]), flush=True)
"""
STEPS = 28  # of an epoch: 898 images in batches of 32


def test_real_signals_leave_a_run_that_goes_on_as_if_nothing_had_been(tmp_path):
    words = ["with", "config=digits.RN8", "image_size=8", "cuda=False", "batch_size=32", "milestones=[1]"]
    place = [f"localpath={tmp_path}"]
    with subprocess.Popen(
        [sys.executable, "-c", SESSIONS, *words, *place, "epochs=1000"],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        for number, status in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
            next(line for line in process.stdout if line.startswith("epoch "))
            process.send_signal(number)
            assert next(line for line in process.stdout if line.startswith("status")) == f"status {status}\n"
            content = load_checkpoint(tmp_path / "digits/RN8/stopped.pth")
            assert 0 < content["unfinished"]["num_steps"] <= STEPS
        _, error = process.communicate(timeout=60)
    go_on = ["main_classification.py", *words, *place, "epochs=1000", "checkpoint=-1"]
    assert error.splitlines() == [f"stopped; go on with: python {shlex.join(go_on)}"] * 2
    assert not list((tmp_path / "digits/RN8").glob(".*.part"))

    epochs = f"epochs={content['epoch'] + 1}"
    whole = [f"localpath={tmp_path / 'whole'}"]
    for options in ((*place, "checkpoint=-1"), whole):
        assert main_classification.main(["main_classification.py", *words, epochs, *options]) == 0
    assert differences(outcome(tmp_path / "digits/RN8"), outcome(tmp_path / "whole/digits/RN8")) == []


def test_ctrl_c_before_training_begins_stops_at_once(monkeypatch, capsys, tmp_path):
    def interrupt(config: dict) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(main_classification, "run_config", interrupt)
    words = ["with", "config=digits.RN8", f"localpath={tmp_path}"]
    assert main_classification.main(["main.py", *words]) == 130
    assert capsys.readouterr().err == f"stopped; go on with: python main.py {shlex.join(words)} checkpoint=-1\n"
