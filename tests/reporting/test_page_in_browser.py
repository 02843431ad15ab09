"""The report in a real browser, narrow and wide: nothing sticks out, no script fails, and a reloaded page is the same.

Both widths are frames of one page, because a window cannot be as narrow as a phone. Skips where there is no Chromium.
"""

import html
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from config.experiments import default_configs
from reporting.report import write_report
from results.collect import PICTURES, PROGRESS, RESULTS
from storage.documents import save_json

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--virtual-time-budget=20000", "--dump-dom",
)  # fmt: skip
OWN, _ = default_configs()
WIDTHS = (390, 1280)
LONG = "a_long_name_without_any_place_to_break_it_" * 3
# Collects what goes wrong before the page's own script runs.
LISTEN = """<script>
    window.problems = [];
    addEventListener("error", (event) => problems.push(event.message));
    for (const kind of ["error", "warn"]) console[kind] = (...words) => problems.push(words.join(" "));
</script>"""
LOOK = """<script>
const look = async () => {
    const told = [];
    for (const frame of document.querySelectorAll("iframe.look")) {
        const page = frame.contentDocument, root = page.documentElement;
        const reachesOut = (element) => element.getBoundingClientRect().right > root.clientWidth + 0.5;
        const sticksOut = () => root.scrollWidth <= root.clientWidth ? [] : [...page.querySelectorAll("body *")]
            .filter((element) => reachesOut(element) && !element.closest(".scrolling > *, .pictures div > *, svg > *"))
            .map((element) => `<${element.tagName.toLowerCase()} class="${element.className}">`);
        const folded = sticksOut();
        for (const fold of page.querySelectorAll("details")) fold.open = true;
        const drawn = {};
        for (const select of page.querySelectorAll("select")) for (const option of select.options) {
            select.value = option.value;
            select.dispatchEvent(new frame.contentWindow.Event("change"));
            const figure = select.closest("figure");
            const lines = [...figure.querySelectorAll(".line > path")].map((line) => line.getAttribute("d"));
            const ticks = [...figure.querySelectorAll(".ytick text")].map((tick) => tick.textContent);
            drawn[option.value] = {lines, ticks, ends: figure.querySelectorAll(".line use").length};
        }
        const {problems} = frame.contentWindow;
        told.push({width: frame.clientWidth, folded, unfolded: sticksOut(), drawn, problems});
    }
    const frame = document.querySelector("iframe.kept");
    const state = () => {
        const figure = frame.contentDocument.querySelector('.curves[data-key="digits.RN14_RN8"]');
        const folds = [...frame.contentDocument.querySelectorAll("details")];
        return {
            chosen: figure.querySelector("select").value,
            shown: figure.querySelector("svg[role]").getAttribute("aria-label").split(" by ")[0],
            hidden: [...figure.querySelectorAll("[aria-pressed=false]")].map((button) => button.dataset.key),
            unfolded: folds.filter((fold) => fold.open).map((fold) => fold.id),
        };
    };
    const figure = frame.contentDocument.querySelector('.curves[data-key="digits.RN14_RN8"]');
    figure.querySelector("select").value = "train loss";
    figure.querySelector("select").dispatchEvent(new frame.contentWindow.Event("change"));
    figure.querySelector("[data-key=student]").click();
    frame.contentDocument.getElementById("experiment-digits.RN8").open = true;
    const before = state();
    await new Promise((resolve) => {
        frame.addEventListener("load", resolve, {once: true});
        frame.srcdoc = document.querySelector("iframe.later").srcdoc;
    });
    const answer = {told, before, after: state(), problems: frame.contentWindow.problems};
    document.body.innerHTML = "<pre></pre>";
    document.querySelector("pre").textContent = JSON.stringify(answer);
};
addEventListener("load", look);
</script>"""


def put(root: Path, name: str, top1: float, *, file: str = RESULTS, seed: int = 0, **facts: Any) -> Path:
    """A training of two epochs."""
    own = OWN[name]
    history = [
        {"epoch": epoch, "train": {"loss": 1 / epoch, "top1": top1}, "eval": {"top1": top1 - 3 + epoch}}
        for epoch in (1, 2)
    ]
    results = {key: own[key] for key in ("config", "method", "dataset", "epochs")} | {
        "mode": "train", "top1": top1, "top5": 99.0, "best_top1": top1, "best_epoch": 2, "seed": seed, "device": LONG,
        "precision": "fp32", "seconds": 60.0, "command": f"main_classification.py with config={name} fname={LONG}",
        "environment": {"python": "3.11.7", "versions": {"torch": "2.15.0"}}, "history": history,
    }  # fmt: skip
    options = own | {"seed": seed, "seeds": [seed]} | facts.pop("options", {})
    path = root.joinpath(*name.split("."), f"seed{seed}", file)
    save_json(path, results | {"options": options} | facts)
    return path


@pytest.fixture(scope="module")
def told(tmp_path_factory) -> dict[str, Any]:
    """What the browser says of a page with something of everything, and of one that has loaded itself again."""
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed")
    folder = tmp_path_factory.mktemp("page")
    root = folder / LONG

    def written(refresh: int | None = None) -> str:
        write_report(root, OWN, command=f"report with localpath={root}", refresh=refresh)
        page = (root / "report/index.html").read_text().replace("<head>", f"<head>{LISTEN}")
        return html.escape(page)

    put(root, "digits.RN8", 96.0, exports={f"{LONG}.onnx": {"bytes": 1000, "file": LONG}})
    put(root, "digits.RN14_RN8.QuEST", 97.0)
    put(root, "digits.RN14_RN8.letKD-2", 97.5, file=PROGRESS, state="running", epoch=2)
    first = written(refresh=1000)
    for seed in (0, 1):
        path = put(root, "CIFAR100.resnetv1.RN56_RN20.letKD-2", 73.0 + seed, seed=seed)
    put(root, "CIFAR100.resnetv1.RN56_RN20.letKD-1", 50.0, options={"teacher_weights": LONG})
    picture = path.parent / PICTURES / "confusion.png"
    picture.parent.mkdir()
    Image.new("RGB", (1400, 900)).save(picture)
    (root / f"{LONG}.d").mkdir()
    (root / f"{LONG}.d" / RESULTS).write_text("{")
    later, whole = written(refresh=1000), written()
    frames = [
        f'<iframe class="look" style="width: {width}px; border: 0" srcdoc="{whole}"></iframe>' for width in WIDTHS
    ]
    frames += [
        f'<iframe class="{name}" srcdoc="{page}"></iframe>' for name, page in (("kept", first), ("later", later))
    ]
    program = folder / "look.html"
    program.write_text(f'<!doctype html><meta charset="utf-8"><body>{"".join(frames)}{LOOK}')
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", program.as_uri()]
    process = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(html.unescape(process.stdout.partition("<pre>")[2].partition("</pre>")[0]))


@pytest.mark.parametrize("place", range(len(WIDTHS)), ids=map(str, WIDTHS))
def test_nothing_sticks_out_and_no_script_fails(place, told):
    found = told["told"][place]
    assert found["width"] == WIDTHS[place]
    assert (found["folded"], found["unfolded"], found["problems"]) == ([], [], [])


def test_every_metric_is_drawn_when_it_is_chosen(told):
    drawn = told["told"][0]["drawn"]
    assert set(drawn) == {"eval top1", "train top1", "train loss"}
    for found in drawn.values():
        assert found["lines"] and all(len(path.split("L")) == 2 for path in found["lines"])
        assert found["ends"] == len(found["lines"])
    assert drawn["train loss"]["ticks"] == ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]


def test_a_page_that_loads_itself_again_keeps_what_was_chosen_hidden_and_unfolded(told):
    before = told["before"]
    assert before["chosen"] == "train loss" and before["shown"] == "Training loss" and before["hidden"] == ["student"]
    assert before["unfolded"] == ["experiment-digits.RN8"]
    assert told["after"] == before and told["problems"] == []
