"use strict";
document.documentElement.classList.add("scripted");

// Learning curves: a vertical line follows the pointer, a finger or the arrow keys, and the legend tells the values.
for (const figure of document.querySelectorAll(".curves")) {
  const pictures = [...figure.querySelectorAll("svg[data-quantity]")];
  const buttons = [...figure.querySelectorAll(".legend button")];
  const outputs = [...figure.querySelectorAll(".legend output")];
  const heading = figure.querySelector(".quantity");
  const told = figure.querySelector(".epoch");
  const pairs = (text, mark) => text.split(mark).map((part) => part.split(":"));
  let shown = pictures[0];
  let position = -1; // of the epoch that is told; -1: the last of every series

  const tell = () => {
    const epochs = pairs(shown.dataset.x, " ");
    const [epoch, x] = epochs[position] ?? [null, 0];
    const cursor = shown.querySelector(".cursor");
    cursor.setAttribute("visibility", epoch === null ? "hidden" : "visible");
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    told.textContent = epoch === null ? "last epoch" : `epoch ${epoch}`;
    outputs.forEach((output, index) => {
      const line = shown.querySelector(`[data-series="${index}"]`);
      const values = line ? pairs(line.dataset.values, "|") : [];
      const found = epoch === null ? values.at(-1) : values.find((value) => value[0] === epoch);
      output.textContent = found ? found[1] : "none";
    });
  };
  const toggle = () => {
    for (const line of figure.querySelectorAll("g[data-series]")) {
      line.style.display = buttons[line.dataset.series].getAttribute("aria-pressed") === "true" ? "" : "none";
    }
  };
  const follow = (event) => {
    const box = shown.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * shown.viewBox.baseVal.width;
    const distances = pairs(shown.dataset.x, " ").map((epoch) => Math.abs(epoch[1] - x));
    position = distances.indexOf(Math.min(...distances));
    tell();
  };
  const leave = () => {
    position = -1;
    tell();
  };
  for (const picture of pictures) {
    picture.addEventListener("pointermove", follow);
    picture.addEventListener("pointerdown", follow);
    picture.addEventListener("pointerleave", leave);
    picture.addEventListener("blur", leave);
    picture.addEventListener("keydown", (event) => {
      const last = pairs(picture.dataset.x, " ").length - 1;
      const from = position < 0 ? last : position;
      const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: last };
      if (!(event.key in moves)) return;
      event.preventDefault();
      position = Math.max(0, Math.min(last, moves[event.key]));
      tell();
    });
  }
  buttons.forEach((button) => {
    button.addEventListener("click", () => {
      button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
      toggle();
    });
  });
  figure.querySelector("select").addEventListener("change", (event) => {
    shown = pictures.find((picture) => picture.dataset.quantity === event.target.value);
    for (const picture of pictures) picture.toggleAttribute("hidden", picture !== shown);
    heading.textContent = shown.dataset.label;
    position = -1;
    tell();
  });
}

// A link into something folded opens it, and so does printing.
const unfold = () => {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let element = target; element; element = element.parentElement) {
    if (element.tagName === "DETAILS") element.open = true;
  }
  target?.scrollIntoView();
};
addEventListener("hashchange", unfold);
if (location.hash) unfold();
addEventListener("beforeprint", () => {
  for (const folded of document.querySelectorAll(".experiment, section:not(#unmeasured) .fill")) {
    folded.open = true;
  }
});

// A page that loads itself again keeps what was unfolded.
if (document.querySelector("meta[http-equiv=refresh]")) {
  const folds = [...document.querySelectorAll("details")];
  const kept = sessionStorage.getItem("unfolded")?.split(",") ?? [];
  for (const index of kept) folds[index]?.setAttribute("open", "");
  addEventListener("pagehide", () => {
    sessionStorage.setItem("unfolded", folds.flatMap((fold, index) => (fold.open ? [index] : [])).join());
  });
}
