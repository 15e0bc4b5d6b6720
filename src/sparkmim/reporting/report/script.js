"use strict";
// Read-out of the curves: all charts follow the step under the pointer, or the arrow keys.
const SVG_SIDE = 1000; // the charts' own unit, see charts.py

function show(value) { // as text.py's number()
  if (value !== 0 && Math.abs(value) < 1e-3) return String(Number(value.toPrecision(4)).toExponential());
  return Math.abs(value) >= 999.5 ? Math.round(value).toLocaleString("en") : String(Number(value.toPrecision(4)));
}

function make(parent, tag, className, text = "") {
  const element = parent.appendChild(document.createElement(tag));
  element.className = className;
  element.textContent = text;
  return element;
}

function nearest(steps, step) { // index; steps ascend
  let low = 0, high = steps.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle; else high = middle;
  }
  return step - steps[low] <= steps[high] - step ? low : high;
}

const charts = [...document.querySelectorAll(".chart")].map((figure) => {
  const plot = figure.querySelector(".plot");
  const items = [...figure.querySelectorAll("li")];
  const lines = [...figure.querySelectorAll("polyline")];
  const series = JSON.parse(figure.querySelector("script").textContent).map(([steps, epochs, values], i) => ({
    steps, epochs, values,
    points: lines[i].points,
    label: items[i].textContent.replace(/\S+\s*$/, "").trim() || figure.querySelector("h3").textContent,
    output: items[i].querySelector("b"),
    last: items[i].querySelector("b").textContent,
    dot: make(plot, "div", `dot ${lines[i].classList[0]}`),
  }));
  const chart = { plot, series, cursor: make(plot, "div", "cursor"), tip: make(plot, "div", "tip"), index: series[0].steps.length };
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * SVG_SIDE;
    const xs = Array.from(series[0].steps, (_, i) => series[0].points[i].x);
    moveAll(chart, nearest(xs, x));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  plot.addEventListener("pointerleave", leaveAll);
  plot.addEventListener("blur", leaveAll);
  plot.addEventListener("keydown", (event) => {
    const way = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (!way) return;
    event.preventDefault();
    moveAll(chart, Math.max(0, Math.min(series[0].steps.length - 1, chart.index + way)));
  });
  return chart;
});

function moveAll(active, index) {
  active.index = index;
  const step = active.series[0].steps[index];
  for (const chart of charts) {
    chart.tip.hidden = chart !== active;
    chart.tip.replaceChildren();
    make(chart.tip, "span", "", `step ${step.toLocaleString("en")}, epoch ${active.series[0].epochs[index].toFixed(2)}`);
    for (const one of chart.series) {
      const i = nearest(one.steps, step), point = one.points[i], text = show(one.values[i]);
      one.output.textContent = text;
      one.dot.hidden = false;
      one.dot.style.left = `${(point.x / SVG_SIDE) * 100}%`;
      one.dot.style.top = `${(point.y / SVG_SIDE) * 100}%`;
      const row = make(chart.tip, "div", "");
      make(row, "i", "", one.steps[i] === step ? one.label : `${one.label}, step ${one.steps[i].toLocaleString("en")}`);
      make(row, "b", "", text);
    }
    const share = active.series[0].points[index].x / SVG_SIDE;
    chart.cursor.hidden = false;
    chart.cursor.style.left = `${share * 100}%`;
    chart.tip.style.left = share < 0.5 ? `calc(${share * 100}% + 12px)` : "auto";
    chart.tip.style.right = share < 0.5 ? "auto" : `calc(${(1 - share) * 100}% + 12px)`;
  }
}

function leaveAll() {
  for (const chart of charts) {
    chart.cursor.hidden = chart.tip.hidden = true;
    for (const one of chart.series) {
      one.dot.hidden = true;
      one.output.textContent = one.last;
    }
  }
}
leaveAll();
