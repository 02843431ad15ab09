"""The other benchmarks run, on a few patches and images, and read options as the entry does."""

import pytest
import torch

from architectures import create_model
from benchmarks import offline, precision


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"model": create_model("resnet14", num_classes=10).state_dict()}, path)
    return path


def figures(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


SMALL = ["--words", "16", "--iterations", "3", "--faiss-iterations", "2"]


def test_made_up_patches_give_both_tables(monkeypatch, capsys):
    pytest.importorskip("faiss")
    monkeypatch.setattr("sys.argv", ["offline", "--patches", "3000", "--channels", "12", "--classes", "5", *SMALL])
    monkeypatch.setattr(offline, "machine_rates", lambda device: (1e11, 1e10))
    offline.main()
    printed = capsys.readouterr().out
    rows = {figures(line)[0]: figures(line) for line in printed.splitlines() if line.startswith("|")}
    assert "3,000 patches of 12 channels, 5 classes" in printed
    assert [rows[name][1] for name in ("torch", "faiss")] == ["3", "2"]
    assert {"LDA", "sub-classes", "decision matrix", "together"} <= rows.keys()
    objectives = next(line for line in printed.splitlines() if line.startswith("objective of iteration 2"))
    ours, theirs = (float(word.rstrip(",")) for word in objectives.split() if word[0].isdigit() and "." in word)
    assert ours == pytest.approx(theirs, rel=1e-3)


def test_patches_of_a_network_are_those_of_its_jobs(weights, tmp_path):
    options = ["config=digits.RN14", f"weights={weights}", f"localpath={tmp_path}"]
    words, decisions, labels = offline.TrainedNetwork(precision.read_config(options)).both()
    assert words.shape == decisions.shape == (len(labels), 64)
    assert labels.unique().tolist() == list(range(10))
    assert not torch.equal(words, decisions)


def test_options_are_read_as_the_entry_reads_them():
    config = precision.read_config(["config=digits.RN14_RN8.letKD-2", "num_words=16", "cuda=False", "localpath=here"])
    assert (config["num_words"], config["cuda"], config["localpath"]) == (16, False, "here")
    with pytest.raises(ValueError, match="num_word"):
        precision.read_config(["config=digits.RN14_RN8.letKD-2", "num_word=16"])
    with pytest.raises(ValueError, match="num_words"):
        precision.read_config(["config=digits.RN14_RN8.letKD-2", "num_words=many"])
