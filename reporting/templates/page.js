"use strict";
document.documentElement.classList.add("scripted");

// Learning curves: a vertical line follows the pointer, a finger or the arrow keys, and the legend has the values there.
for (const figure of document.querySelectorAll(".curves")) {
  const { epochs, x, y, metrics } = JSON.parse(figure.dataset.curves);
  const svg = figure.querySelector(":scope > svg");
  const select = figure.querySelector("select");
  const buttons = [...figure.querySelectorAll(".legend button")];
  const outputs = [...figure.querySelectorAll(".legend output")];
  const [first, last] = [epochs[0], epochs.at(-1)];
  const positions = epochs.map((epoch) => x[0] + ((epoch - first) / (last - first || 1)) * (x[1] - x[0]));
  const cursor = svg.appendChild(document.createElementNS(svg.namespaceURI, "path"));
  cursor.classList.add("cursor");
  let shown = Object.values(metrics)[0];
  let position = -1; // among the epochs; -1: the last of every series

  const height = (value) => {
    const [at, low, high] = [value, ...shown.limits].map(shown.is_log ? Math.log10 : Number);
    return y[0] + ((at - low) / (high - low)) * (y[1] - y[0]);
  };
  const ticks = svg.querySelector(".ytick").parentNode;
  const [tick, origin] = [ticks.firstElementChild.cloneNode(true), height(shown.ticks[0][0])];
  const draw = () => {
    const path = (points) => "M" + points.map(([x, value]) => `${x.toFixed(1)} ${height(value).toFixed(1)}`).join("L");
    shown.series.forEach((values, index) => {
      const [band, line] = svg.querySelectorAll(`[data-series="${index}"]`);
      const known = values.flatMap((value, place) => (value ? [[positions[place], ...value]] : []));
      const spans = known.filter((point) => point.length > 2);
      const around = [...spans.map(([x, , low]) => [x, low]), ...spans.reverse().map(([x, , , high]) => [x, high])];
      band.querySelector("path").setAttribute("d", around.length ? path(around) : "");
      line.setAttribute("class", known.length ? "line" : "empty");
      if (!known.length) return;
      line.querySelector(":scope > path").setAttribute("d", path(known));
      line.querySelector("use").setAttribute("x", known.at(-1)[0]);
      line.querySelector("use").setAttribute("y", height(known.at(-1)[1]));
    });
    ticks.replaceChildren(...shown.ticks.map(([value, text]) => {
      const placed = tick.cloneNode(true);
      placed.setAttribute("transform", `translate(0 ${height(value) - origin})`);
      placed.querySelector("text").textContent = text;
      return placed;
    }));
    svg.setAttribute("aria-label", shown.about);
    figure.querySelector(".metric").textContent = shown.label;
  };
  const tell = () => {
    cursor.setAttribute("d", position < 0 ? "" : `M${positions[position]} ${y.join("V")}`);
    figure.querySelector(".epoch").textContent = position < 0 ? "last epoch" : `epoch ${epochs[position]}`;
    const written = (value) => (shown.digits ? value.toFixed(shown.digits) : `${value}`);
    outputs.forEach((output, index) => {
      const values = shown.series[index];
      const [mean, low, high] = ((position < 0 ? values.findLast(Boolean) : values[position]) ?? []).map(written);
      output.textContent = mean === undefined ? "none" : low === undefined ? mean : `${mean} (${low} to ${high})`;
    });
  };
  const move = (to) => {
    position = to;
    tell();
  };
  const follow = (event) => {
    const box = svg.getBoundingClientRect();
    const at = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const distances = positions.map((place) => Math.abs(place - at));
    move(distances.indexOf(Math.min(...distances)));
  };
  for (const kind of ["pointermove", "pointerdown"]) svg.addEventListener(kind, follow);
  for (const kind of ["pointerleave", "blur"]) svg.addEventListener(kind, () => move(-1));
  svg.addEventListener("keydown", (event) => {
    const end = epochs.length - 1;
    const from = position < 0 ? end : position;
    const moves = { ArrowLeft: from - 1, ArrowRight: from + 1, Home: 0, End: end };
    if (!(event.key in moves)) return;
    event.preventDefault();
    move(Math.max(0, Math.min(end, moves[event.key])));
  });
  buttons.forEach((button, index) => {
    button.addEventListener("click", () => {
      const isShown = button.getAttribute("aria-pressed") !== "true";
      button.setAttribute("aria-pressed", isShown);
      for (const part of svg.querySelectorAll(`[data-series="${index}"]`)) part.style.display = isShown ? "" : "none";
    });
  });
  select.addEventListener("change", () => {
    shown = metrics[select.value];
    draw();
    move(-1);
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
