"use strict";
document.documentElement.classList.add("scripted");

// "start end low high logarithmic" as a function from values to positions.
const axis = (text) => {
  const [start, end, low, high, logarithmic] = text.split(" ").map(Number);
  const place = logarithmic ? Math.log10 : (value) => value;
  return (value) => start + ((place(value) - low) / (high - low)) * (end - start);
};

// Learning curves: a vertical line follows the pointer, a finger or the arrow keys, and the legend tells the values.
for (const figure of document.querySelectorAll(".curves")) {
  const pictures = [...figure.querySelectorAll("svg[data-quantity]")];
  const buttons = [...figure.querySelectorAll(".legend button")];
  const outputs = [...figure.querySelectorAll(".legend output")];
  const heading = figure.querySelector(".quantity");
  const told = figure.querySelector(".epoch");
  const select = figure.querySelector("select");
  const epochs = figure.dataset.epochs.split(" ").map(Number);
  const positions = epochs.map(axis(figure.dataset.x));
  let shown = pictures[0];
  let position = -1; // among the epochs; -1: the last of every series

  const values = (line) => line.dataset.values.split(";").map((text) => text && text.split(" ").map(Number));
  const draw = (picture) => {
    const y = axis(picture.dataset.y);
    for (const line of picture.querySelectorAll("g[data-series]")) {
      const points = values(line).map((found, index) => [positions[index], found]).filter(([, found]) => found);
      const path = (part) => part.map(([x, value]) => `${x.toFixed(1)},${y(value).toFixed(1)}`);
      const highest = points.map(([x, found]) => [x, found[2] ?? found[0]]);
      const lowest = points.map(([x, found]) => [x, found[1] ?? found[0]]).reverse();
      line.querySelector(".line").setAttribute("points", path(points.map(([x, found]) => [x, found[0]])).join(" "));
      line.querySelector(".band").setAttribute("points", path([...highest, ...lowest]).join(" "));
    }
  };
  const tell = () => {
    const cursor = shown.querySelector(".cursor");
    cursor.setAttribute("visibility", position < 0 ? "hidden" : "visible");
    cursor.setAttribute("x1", positions[position] ?? 0);
    cursor.setAttribute("x2", positions[position] ?? 0);
    told.textContent = position < 0 ? "last epoch" : `epoch ${epochs[position]}`;
    const written = (value) => (shown.dataset.digits ? value.toFixed(shown.dataset.digits) : `${value}`);
    outputs.forEach((output, index) => {
      const line = shown.querySelector(`[data-series="${index}"]`);
      const known = line ? values(line) : [];
      const found = position < 0 ? known.findLast((value) => value) : known[position];
      const [mean, low, high] = (found || []).map(written);
      output.textContent = !found ? "none" : low === undefined ? mean : `${mean} (${low} to ${high})`;
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
    const distances = positions.map((place) => Math.abs(place - x));
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
      const last = epochs.length - 1;
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
  select.addEventListener("change", () => {
    shown = pictures.find((picture) => picture.dataset.quantity === select.value);
    for (const picture of pictures) picture.toggleAttribute("hidden", picture !== shown);
    heading.textContent = shown.dataset.label;
    position = -1;
    draw(shown);
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

// A page that loads itself again keeps what was unfolded, chosen and hidden, by names: places shift when runs appear.
if (document.querySelector("meta[http-equiv=refresh]")) {
  const name = (element) => `${element.closest("[id]")?.id} ${element.dataset.key}`;
  const folds = [...document.querySelectorAll("details")];
  const figures = [...document.querySelectorAll(".curves")].map((figure) => ({
    name: name(figure),
    select: figure.querySelector("select"),
    buttons: [...figure.querySelectorAll(".legend button")],
  }));
  const kept = JSON.parse(sessionStorage.getItem("kept") ?? '{"unfolded": [], "chosen": {}, "hidden": {}}');
  for (const fold of folds) if (kept.unfolded.includes(name(fold))) fold.open = true;
  for (const { name, select, buttons } of figures) {
    for (const button of buttons) if (kept.hidden[name]?.includes(button.dataset.key)) button.click();
    select.value = kept.chosen[name] ?? select.value;
    if (select.selectedIndex < 0) select.selectedIndex = 0;
    select.dispatchEvent(new Event("change"));
  }
  addEventListener("pagehide", () => {
    const isHidden = (button) => button.getAttribute("aria-pressed") === "false";
    const keys = (buttons) => buttons.map((button) => button.dataset.key);
    sessionStorage.setItem("kept", JSON.stringify({
      unfolded: folds.filter((fold) => fold.open).map(name),
      chosen: Object.fromEntries(figures.map(({ name, select }) => [name, select.value])),
      hidden: Object.fromEntries(figures.map(({ name, buttons }) => [name, keys(buttons.filter(isHidden))])),
    }));
  });
}
