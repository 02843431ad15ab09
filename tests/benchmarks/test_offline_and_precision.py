"""The other benchmarks run, on a few patches and images, and read options as the entry does."""

import pytest
import torch
from objective_tools import batch_of

from architectures import create_model
from benchmarks import offline, precision, step


@pytest.fixture
def weights(tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "weights.pth"
    torch.save({"model": create_model("resnet14", num_classes=10).state_dict()}, path)
    return path


def figures(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]


TINY = {"NUM_WORDS": 32, "NUM_CLASSES": 5, "NUM_SUBCLASSES": 2, "NUM_COMPONENTS": 4, "BATCH": 8}
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


def test_patches_of_a_network_are_those_of_its_jobs(few_digits, weights, tmp_path):
    options = ["config=digits.RN14", f"weights={weights}", f"localpath={tmp_path}"]
    words, decisions, labels = offline.TrainedNetwork(precision.read_options(options)).both()
    assert words.shape == decisions.shape == (len(labels), 64)
    assert labels.unique().tolist() == list(range(10))
    assert not torch.equal(words, decisions)


def test_options_are_read_as_the_entry_reads_them():
    options = precision.read_options(["config=digits.RN14_RN8.letKD-2", "num_words=16", "cuda=False", "localpath=here"])
    assert (options.words.num_words, options.run.cuda, options.run.localpath) == (16, False, "here")
    with pytest.raises(ValueError, match="num_word"):
        precision.read_options(["config=digits.RN14_RN8.letKD-2", "num_word=16"])
    with pytest.raises(ValueError, match="num_words"):
        precision.read_options(["config=digits.RN14_RN8.letKD-2", "num_words=many"])


@pytest.mark.parametrize("method", step.METHODS)
def test_rounding_of_the_teacher_is_seen_in_its_targets(monkeypatch, method):
    for name, value in TINY.items():
        monkeypatch.setattr(step, name, value)
    monkeypatch.setitem(step.PAIRS, "tiny", ("resnet14", "resnet8"))
    objective = step.build_objective(step.Case("tiny", method, "fp32", "cpu")).eval()
    pixels = torch.randint(256, (8, 3, 32, 32), dtype=torch.uint8)
    found = precision.compare(objective, batch_of(pixels, torch.arange(8) % 5))
    expected = ["words changed", "words, total variation"]
    if method == "letKD-2":
        expected += ["sub-classes changed", "decisions, total variation"]
    assert list(found) == expected
    for values_P in found.values():
        assert values_P.shape == (8 * 8 * 8,)
        assert ((values_P >= 0) & (values_P <= 1 + 1e-6)).all()
    assert found["words, total variation"].any(), "bfloat16 moves every soft target a little"
    if method == "letKD-2":  # another row where the sub-class is another one, and the same row elsewhere
        assert torch.equal(found["sub-classes changed"], found["decisions, total variation"] > 0)
