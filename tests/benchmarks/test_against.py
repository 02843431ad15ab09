"""The judge of two revisions: its statistics, what its digests see, its processes and its worktree."""

import math
import statistics
import subprocess
from pathlib import Path

import pytest
import torch

from benchmarks import against

# --- statistics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "ranks"), [(6, (1, 6)), (10, (2, 9)), (20, (6, 15)), (25, (8, 18)), (30, (10, 21))])
def test_the_interval_has_the_ranks_of_the_published_tables(number, ranks):
    values = [float(value) for value in range(number, 0, -1)]
    assert against.median_interval(values) == ranks


@pytest.mark.parametrize("number", range(6, 60))
def test_no_narrower_interval_would_suffice(number):
    low, high = against.median_interval(list(range(1, number + 1)))
    assert low + high == number + 1

    def coverage(rank: int) -> float:
        """That the median lies between the rank-th smallest and the rank-th largest."""
        return 1 - 2 * sum(math.comb(number, heads) for heads in range(rank)) / 2**number

    assert coverage(low) >= 0.95 > coverage(low + 1)


def test_fewer_than_six_values_have_no_interval():
    assert against.median_interval([1.0, 2.0, 3.0, 4.0, 5.0]) is None


@pytest.fixture
def sides(tmp_path):
    return tuple(against.Side(name, tmp_path / name, tmp_path / "place" / name) for name in ("this", "older"))


def test_a_ratio_is_taken_within_an_alternation(sides):
    """The machine was half as fast in every other alternation: the ratios know nothing of it, medians apart would."""
    pairs = [
        {"this": slow * 3.0, "older": slow * ratio} for slow, ratio in [(1, 2), (2, 3), (1, 4), (2, 2), (1, 3)] * 4
    ]
    row = against.speed_row("step, ms", pairs, sides)
    assert row == ("step, ms", "3", "4", "1.000", "1.000 to 1.500")
    assert statistics.median(pair["this"] for pair in pairs) / statistics.median(p["older"] for p in pairs) != 1


def test_few_alternations_say_that_they_are_few(sides):
    assert against.speed_row("step, ms", [{"this": 1.0, "older": 2.0}] * 5, sides)[3:] == (
        "0.500",
        "needs six alternations",
    )


# --- digests ---------------------------------------------------------------------------------------------------------

WEIGHTS = {
    "backbone.conv.weight": torch.arange(24.0).view(4, 6),
    "layers.penultimate.scale": torch.tensor(3.0),
    "bn.num_batches_tracked": torch.tensor(7),
    "half": torch.arange(5).bfloat16(),
}


def row(changed: dict[str, torch.Tensor]) -> tuple[str, bool]:
    this, older = (against.value_digests(weights.values()) for weights in (changed, WEIGHTS))
    (_, digest, other, verdict, _), equal = against.compare_digests("weights", this, older)
    assert (digest == other) == equal
    return verdict, equal


@pytest.mark.parametrize(
    "changed",
    [
        {f"student.{name}": tensor.clone() for name, tensor in WEIGHTS.items()},
        dict(reversed(WEIGHTS.items())),
        WEIGHTS | {"backbone.conv.weight": torch.arange(24.0).view(4, 6, 1, 1)},
        WEIGHTS | {"backbone.conv.weight": torch.arange(24.0).view(4, 6).T.contiguous().T},
    ],
    ids=["renamed", "in another order", "a 1x1 convolution", "another memory format"],
)
def test_equal_values_are_equal(changed):
    assert row(changed) == ("equal", True)


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"half": torch.arange(5).bfloat16().nextafter(torch.tensor(9.0).bfloat16())}, "1 of 4"),
        ({"layers.penultimate.scale": torch.tensor(3.0, dtype=torch.float64)}, "1 of 4"),
        ({"backbone.conv.weight": torch.arange(24.0).view(4, 6).T}, "1 of 4"),
        ({"half": WEIGHTS["half"] + 1, "bn.num_batches_tracked": torch.tensor(8)}, "2 of 4"),
        ({"another": torch.zeros(2)}, "1 of 5"),
        ({"the same again": torch.tensor(7)}, "1 of 5"),
    ],
    ids=["last bit", "type", "transposed", "two", "one more", "one twice"],
)
def test_other_values_are_counted(changed, verdict):
    assert row(WEIGHTS | changed) == (f"different ({verdict} tensors)", False)


def test_a_missing_tensor_is_counted_too():
    assert row({"half": WEIGHTS["half"]}) == ("different (3 of 4 tensors)", False)


def test_files_are_read_by_what_is_in_them(tmp_path):
    torch.save({"model": WEIGHTS, "epoch": 2}, tmp_path / "last.pth")
    assert len(against.read_tensors(tmp_path, "last.pth", "model")) == 4
    for arguments, message in [
        (("last.pth", "student"), "no tensors under 'student'; it has model, epoch"),
        (("last.pth",), "no tensors; it has model, epoch"),
        (("*.npy",), "0 files instead of one"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            against.read_tensors(tmp_path, *arguments)


# --- processes -------------------------------------------------------------------------------------------------------


def test_a_process_that_ends_is_an_error_with_its_last_line(sides, tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text("import sys; sys.exit('one line\\nerror: there is no such experiment\\n\\n')")
    monkeypatch.setattr(against, "WORKER", worker)
    sides[1].outputs.parent.mkdir()
    with pytest.raises(RuntimeError, match=r"^older ended with 1: error: there is no such experiment$"):
        against.measure_job(sides[1:], "kmeans=16", against.QUICK, tmp_path / "place")


# --- revisions -------------------------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(["git", "-C", folder, *identity, *words], check=True, capture_output=True, text=True).stdout


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """One whose first commit has no entry and whose second has; its project is in a folder below."""
    project = tmp_path / "repository" / "project"
    project.mkdir(parents=True)
    git(tmp_path, "init", "--quiet", str(project.parent))
    for name in ("README.md", "main_classification.py"):
        project.joinpath(name).write_text("as committed\n")
        git(project, "add", ".")
        git(project, "commit", "--quiet", "--message", name)
    monkeypatch.setattr(against, "ROOT", project)
    return project


@pytest.mark.parametrize("end", [None, RuntimeError, KeyboardInterrupt])
def test_the_worktree_is_the_committed_state_and_goes_again(repository, end):
    entry = repository / "main_classification.py"
    entry.write_text("changed since\n")
    try:
        with against.both_sides("HEAD") as ((this, older), place):
            assert this.name.endswith("-dirty)") and not older.name.endswith("-dirty)")
            assert this.root == repository
            assert older.root.joinpath("main_classification.py").read_text() == "as committed\n"
            assert place.is_dir()
            if end:
                raise end
    except (RuntimeError, KeyboardInterrupt) as error:
        assert type(error) is end
    assert not place.exists() and not older.root.exists()
    assert len(git(repository, "worktree", "list").splitlines()) == 1
    assert entry.read_text() == "changed since\n"


@pytest.mark.parametrize(
    ("revision", "message"),
    [
        ("nosuch", "error: unknown revision 'nosuch'; `git log --oneline` shows what there is"),
        ("HEAD:project/README.md", "error: unknown revision 'HEAD:project/README.md'; `git log"),
        ("HEAD~1", "error: HEAD~1 has no main_classification.py"),
    ],
)
def test_mistakes_are_one_line(repository, capsys, revision, message):
    assert against.main([revision]) == 2
    error = capsys.readouterr().err
    assert error.startswith(message) and error.count("\n") == 1
    assert len(git(repository, "worktree", "list").splitlines()) == 1


def test_without_a_repository_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(against, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert against.main(["HEAD"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: git rev-parse: ") and "not a git repository" in error and error.count("\n") == 1


@pytest.mark.parametrize("number", ["0", "-3", "many"])
def test_alternations_are_a_positive_number(capsys, number):
    with pytest.raises(SystemExit, match="2"):
        against.main(["HEAD", f"--alternations={number}"])
    assert "--alternations: invalid" in capsys.readouterr().err


@pytest.mark.parametrize("equal", [True, False])
def test_the_table_and_the_exit_status_say_what_was_found(repository, monkeypatch, capsys, equal):
    def compared(sides, experiments, size, place):
        assert experiments == ["digits.RN8"] and size == against.QUICK
        return [
            ("codebook", "ab", "ab" if equal else "cd", "equal" if equal else "different (1 of 1 tensors)", "")
        ], equal

    def measured(sides, alternations, size, place, rows):
        assert rows == chosen
        this, older = (side.name for side in sides)
        return {"LDA=5, s": [{this: 3.0, older: 2.0}] * alternations}

    monkeypatch.setattr(against, "compare_bits", compared)
    monkeypatch.setattr(against, "measure_speed", measured)
    chosen = [*against.JOBS, *against.TRAININGS]
    words = ["HEAD", "--quick", "--alternations=6", "--experiments", "digits.RN8"]
    assert against.main(words) == (0 if equal else 1)
    machine, _, *table = capsys.readouterr().out.splitlines()
    assert f"torch {torch.__version__}" in machine and "6 alternations" in machine and "--quick" in machine
    assert len(table) == 4 and {line.count("|") for line in table} == {6}
    assert ("| equal |" if equal else "| different (1 of 1 tensors) |") in table[2]
    assert table[3] == "| LDA=5, s | 3 | 2 | 1.500 | 1.500 to 1.500 |"

    chosen = ["LDA", "letKD-1 bf16"]
    assert against.main([*words, "--only", "speed", "--of", *chosen]) == 0
    assert "codebook" not in capsys.readouterr().out


def test_what_is_timed_may_be_chosen(tmp_path, monkeypatch, capsys):
    begun = []

    def job(sides, option, size, place, first=0):
        begun.append(option if size.turns else "first")
        return {f"{option}, s": [{}]}

    def training(sides, command, size, place, first=0):
        begun.append(command)
        return {"step, ms": [{}]}

    monkeypatch.setattr(against, "make_inputs", lambda place, images: None)
    monkeypatch.setattr(against, "measure_job", job)
    monkeypatch.setattr(against, "measure_training", training)
    figures = against.measure_speed((), 2, against.QUICK, tmp_path, ["LDA", "letKD-1 bf16"])
    assert list(figures) == ["LDA=5, s", "letKD-1 bf16: step, ms"]
    training_of = "config=CIFAR100.resnetv1.RN56_RN20.letKD-1 num_words=64 precision=bf16"
    assert begun == ["first", "first", *["LDA=5", training_of] * 2]
    with pytest.raises(SystemExit, match="2"):
        against.main(["HEAD", "--of", "letKD-3"])
    assert "invalid choice: 'letKD-3'" in capsys.readouterr().err
