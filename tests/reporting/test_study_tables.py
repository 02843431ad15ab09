"""The tables of a study: what is compared, what is noise, what is not there; and their place in the report."""

import pytest

from reporting.report import write_report, write_study
from reporting.studies import aligned, study_tables
from results.studies import TAUGHT_BY
from storage.documents import save_json

DONE = {0: 90.0, 1: 91.0, 2: 92.0}


def member(method: str, top1: dict[int, float], **others: str) -> dict:
    """A method with runs that are done, and others with their errors."""
    runs = [{"seed": seed, "state": "done", "top1": value} for seed, value in top1.items()]
    runs += [{"seed": int(name[1:]), "state": "failed", "error": error} for name, error in others.items()]
    return {"pair": "A.B", "method": method, "values": {}, "runs": runs}


def study(*members: dict, search: dict | None = None) -> dict:
    texts = {"name": "mine", "command": "main_classification.py study with ...", "state": "finished", "updated": "now"}
    return texts | {"against": members[0]["method"], "seeds": [0, 1, 2], "members": list(members), "search": search}


def row_of(table, method: str) -> dict[str, str]:
    (cells,) = [row for row in table.rows if row[0].split()[0] == method]
    return dict(zip([title or "verdict" for title in table.columns], cells, strict=True))


@pytest.mark.parametrize(
    ("gains", "difference", "verdict"),
    [
        ((1.0, 1.1, 0.9), "+1.00", "above"),
        ((-1.0, -1.1, -0.9), "\N{MINUS SIGN}1.00", "below"),
        ((2.0, -1.0, 0.5), "+0.50", "within the noise of seeds"),
        ((1.0,), "+1.00", "no interval: one seed"),
        ((1.0, 1.1), "+1.05", "no interval: 2 seeds"),
        ((1.0, 1.0, 1.0), "+1.00", "no interval: all differences are equal"),
    ],
)
def test_a_difference_is_told_with_its_interval(gains, difference, verdict):
    taught = member("letKD-1", {seed: DONE[seed] + gain for seed, gain in enumerate(gains)})
    (table,) = study_tables(study(member("KD", DONE), taught))
    told = row_of(table, "letKD-1")
    assert (told["minus KD"], told["verdict"]) == (difference, verdict)
    assert (told["95% interval"] == "-") == verdict.startswith("no interval")
    assert row_of(table, "KD")["minus KD"] == "-" and row_of(table, "KD")["top-1 %"] == "91.00"
    assert row_of(table, "KD")["deviation"] == "1.00"


def test_nothing_is_compared_with_an_untrained_classifier():
    blind = member("QuEST", {0: 9.0, 1: 10.0, 2: 11.0})
    blind["runs"][1]["classifier"] = "untrained"
    (table,) = study_tables(study(member("KD", DONE), blind, member("DKD", {0: 91.0})))
    told = row_of(table, "QuEST")
    assert (told["minus KD"], told["95% interval"], told["verdict"]) == ("-", "-", "untrained classifier")
    assert row_of(table, "DKD")["minus KD"] == "+1.00"
    assert any(note.startswith("Nothing has trained the classifier of QuEST: ") for note in table.notes)
    (table,) = study_tables(study(blind, member("KD", DONE)))
    assert row_of(table, "KD")["verdict"] == "untrained classifier" and row_of(table, "KD")["minus QuEST"] == "-"


def test_intervals_that_are_not_there_are_not_counted():
    short = member("KD", {0: 90.0}), member("DKD", {0: 91.0})
    whole = member("KD", DONE), member("DKD", {0: 90.0, 1: 93.0, 2: 92.5}), member("AT", {0: 91.0})
    (table,), (other,) = study_tables(study(*short)), study_tables(study(*whole))
    assert not any("Student's t" in note for note in table.notes)
    assert any("1 interval at 95%, of Student's t" in note for note in other.notes)


def test_other_seeds_of_the_first_are_said():
    found = DONE | {3: 93.5}
    (table,) = study_tables(study(member("KD", {1: 90.0, 2: 90.9, 3: 92.4}), member("DKD", found)))
    assert row_of(table, "DKD")["verdict"] == "above, 3 of 4 seeds"


def test_what_is_not_there_stands_in_the_table():
    failed = member("DKD", {0: 80.0}, s1="loss became nan", s2="no | file")
    (table,) = study_tables(study(member("KD", {}), failed))
    told = row_of(table, "DKD")
    assert told["not done"] == "seed 1 failed: loss became nan; seed 2 failed: no | file"
    assert (told["seeds"], told["deviation"], told["minus KD"]) == ("1", "-", "-")
    assert row_of(table, "KD")["top-1 %"] == "-"


@pytest.mark.parametrize(("key", "several"), TAUGHT_BY.items())
def test_students_of_several_teachings_are_said(key, several):
    one, other = member("KD", DONE), member("DKD", DONE)
    for run in one["runs"] + other["runs"]:
        run[key] = "a"
    (table,) = study_tables(study(one, other, member("alone", DONE)))
    assert not any("different" in note for note in table.notes)
    other["runs"][0][key] = "b"
    (table,) = study_tables(study(one, other))
    assert table.notes[-1].startswith(f"A.B: 2 different {several} have taught its runs")


def test_runs_on_several_numbers_of_images_are_said():
    first, second = member("KD", DONE), member("DKD", DONE)
    for one, number in ((first, 1000), (second, 900)):
        for run in one["runs"]:
            run["num_images"] = {"train": number, "eval": 40}
    (table,) = study_tables(study(first, second))
    told = "A.B: its runs had 900 and 1,000 training images, so methods are not all that differs."
    assert told in table.notes and not any("evaluation images" in note for note in table.notes)


def test_averages_of_weights_have_rows_of_their_own_and_are_compared_with_each_other():
    one, other, plain = member("KD", DONE), member("DKD", DONE), member("AT", DONE)
    for gain, found in ((0.0, one), (1.0, other)):
        for run in found["runs"]:
            run["average_top1"] = run["top1"] + 2.0 + gain * (1 + run["seed"] / 10)
    (table,) = study_tables(study(one, other, plain))
    assert [row[0] for row in table.rows] == [
        "KD", "DKD", "AT", "KD, average of the weights", "DKD, average of the weights"
    ]  # fmt: skip
    first, second = table.rows[3:]
    assert first[2] == "93.00" and first[5] == "-"
    assert second[5] == "+1.10" and second[7] == "above"
    assert any("is the average of KD" in note for note in table.notes)
    (table,) = study_tables(study(plain, other))
    assert table.rows[-1][0].startswith("DKD, average") and table.rows[-1][5] == "-", "nothing to compare with"


def test_it_says_which_epoch_the_figures_are_of():
    (table,) = study_tables(study(member("KD", DONE)) | {"options": {"epochs": 4}})
    assert table.notes[0].startswith("Top-1 in percent after the last epoch")
    (table,) = study_tables(study(member("KD", DONE)) | {"options": {"val_split": 64}})
    assert table.notes[0].startswith("Top-1 in percent of the epoch that is best on held-out images")


def test_a_search_says_what_has_chosen():
    tried = [member("KD", DONE) | {"values": {"kd.temperature": value}, "is_chosen": value == 4} for value in (2, 4)]
    _, table = study_tables(study(member("KD", DONE), search={"val_split": 50, "candidates": tried}))
    assert [(row[0], row[5]) for row in table.rows] == [("KD kd.temperature=2", ""), ("KD kd.temperature=4", "taken")]
    (note,) = table.notes
    assert (
        note.startswith("Accuracy on 50 training images") and "No image of the evaluation has chosen anything" in note
    )


def test_the_terminal_has_columns_below_each_other():
    (table,) = study_tables(study(member("KD", DONE), member("letKD-2+DKD", DONE)))
    title, empty, head, line, first, second, *_ = aligned(table).splitlines()
    assert (title, empty) == ("Methods compared", "") and set(line) == {"-", " "}
    assert head.index("pair") == first.index("A.B") == second.index("A.B")


def test_the_report_and_a_file_have_the_tables(tmp_path):
    found = study(member("KD", DONE), member("DKD", {0: 80.0}, s1="no | file <b>"))
    folder = tmp_path / "studies/mine"
    save_json(folder / "study.json", found)
    printed = write_study(folder, found)
    write_report(tmp_path, {}, command="report")
    told, page = (tmp_path / "report" / name for name in ("report.md", "index.html"))
    for text in (printed, (folder / "tables.md").read_text(), told.read_text(), page.read_text()):
        assert "91.00" in text and "no interval: one seed" in text and "Methods compared" in text
    row = next(line for line in told.read_text().splitlines() if line.startswith("| DKD "))
    assert row in (folder / "tables.md").read_text() and "no &#124; file &#60;b>" in row
    assert 'id="study-mine"' in page.read_text() and "seed 1 failed: no | file &lt;b&gt;" in page.read_text()
    assert "python main_classification.py study with ..." in (folder / "tables.md").read_text()


def test_a_damaged_study_is_named_and_the_others_are_shown(tmp_path):
    save_json(tmp_path / "studies/whole/study.json", study(member("KD", DONE)) | {"name": "whole"})
    save_json(tmp_path / "studies/odd/study.json", {"members": 5})
    (tmp_path / "studies/torn").mkdir()
    (tmp_path / "studies/torn/study.json").write_text("{")
    report = write_report(tmp_path, {}, command="report")
    assert [study["name"] for study in report.collection.studies] == ["whole"]
    assert [str(found.place) for found in report.collection.damaged] == [
        "studies/odd/study.json", "studies/torn/study.json"
    ]  # fmt: skip
