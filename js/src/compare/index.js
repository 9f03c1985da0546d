// The comparison: losses of several runs on one chart (colour and dash both differ), and what their specs differ in.

import { el, setAttribute, setText } from "../shared/dom.js";
import { MISSING, number } from "../shared/format.js";
import { panel } from "../shared/panel.js";
import { loadPlotly } from "../shared/plotly.js";
import { Rows, smooth } from "../shared/rows.js";
import { text } from "../shared/texts.js";
import { readTheme, watchTheme } from "../shared/theme.js";
import { base, Chart, line } from "../monitor/charts.js";
import { floats } from "../monitor/store.js";
import "./texts.js";

const COLOURS = {
  light: ["#0072B2", "#D55E00", "#007A5A", "#A3527F", "#8A6100", "#1f1f1f"],
  dark: ["#56B4E9", "#E69F00", "#2BC49A", "#DDA0C3", "#F0E442", "#ffffff"],
};
const HEAD = 40; // letters of a run's name over a column; the whole name is in the table of runs
const DASHES = [["solid", ""], ["dash", "6 3"], ["dot", "2 2"], ["dashdot", "6 2 2 2"]];

class View {
  constructor(model) {
    Object.assign(this, { model, smoothing: 0.8 });
    this.build();
    this.end = watchTheme(() => { this.theme = null; this.schedule(); });
    this.changed = () => this.schedule();
    model.on("change:pictures", this.changed);
    this.sized = new ResizeObserver(() => { this.chart.resize(); this.schedule(); });
    this.sized.observe(this.root);
    loadPlotly(model).then((plotly) => { this.plotly = plotly; this.schedule(); }, () => {});
    this.showSpecs();
  }

  build() {
    this.chart = new Chart("nbt-chart-compare");
    this.apart = el("p", { class: "nbt-next", role: "note", hidden: !this.model.get("apart") }, text("compare.apart"));
    this.table = el("table");
    this.specs = el("div", { class: "nbt-scroll", tabindex: 0 });
    const slider = el("input", { type: "range", min: 0, max: 0.99, step: 0.01, value: this.smoothing, oninput: () => { this.smoothing = Number(slider.value); this.schedule(); } });
    this.root = el("section", { class: "nbt nbt-compare", role: "region", "aria-label": text("compare"), "data-lm-suppress-shortcuts": "true" },
      el("h4", {}, text("compare.title")), this.apart, this.chart.node, el("label", { class: "nbt-soft" }, text("compare.smoothing"), slider),
      el("div", { class: "nbt-scroll", tabindex: 0 }, this.table), el("h4", {}, text("compare.specs")), this.specs);
  }

  schedule() {
    if (this.frame) return;
    this.frame = requestAnimationFrame(() => { this.frame = null; if (this.root.isConnected) this.paint(); });
  }

  look(k) {
    const colours = COLOURS[this.theme.dark ? "dark" : "light"];
    return { color: colours[k % colours.length], dash: DASHES[(k + Math.floor(k / colours.length)) % DASHES.length] };
  }

  paint() {
    this.root.classList.toggle("nbt-dark", readTheme(this.root).dark);
    this.theme ??= readTheme(this.root);
    const columns = this.model.get("columns");
    const runs = this.model.get("pictures").map((picture, k) => {
      const rows = new Rows();
      rows.add(picture.rows, floats(columns[k]));
      const smoothed = smooth(rows.column("loss"), rows.column("count"), this.smoothing);
      return { ...picture, step: rows.column("step"), smoothed };
    });
    const traces = runs.map((run, k) => {
      const { color, dash } = this.look(k);
      return { ...line(this.label(run, k), { x: run.step, y: run.smoothed }, color, { width: 2, dash: dash[0] }), hovertemplate: "%{y:.4g}" };
    });
    const title = (key) => ({ text: text(key), standoff: 4 });
    const layout = base(this.theme, { showlegend: false, hovermode: "x unified", xaxis: { title: title("table.step"), hoverformat: ",d" }, yaxis: { title: title("compare.axis") } });
    layout.hoverlabel = { ...layout.hoverlabel, namelength: 40 };
    layout.margin = { ...layout.margin, l: 62 };
    const longest = runs.reduce((a, b) => (b.step.length > a.step.length ? b : a));
    this.chart.draw(this.plotly, traces, layout, this.theme, { x: longest.step, y: longest.smoothed });
    this.chart.describe(text("compare.chart", { n: runs.length }));
    this.showRuns(runs);
    setAttribute(this.root, "data-plotly", String(Boolean(this.plotly)));
  }

  swatch(k) {
    const { color, dash } = this.look(k);
    return el("svg", { class: "nbt-swatch", viewBox: "0 0 26 10", "aria-hidden": "true" },
      el("line", { x1: 0, x2: 26, y1: 5, y2: 5, stroke: color, "stroke-width": 3, "stroke-dasharray": dash[1] || null }));
  }

  showRuns(runs) {
    const head = ["compare.run", "compare.state", "table.step", "compare.axis", "compare.best"].map((key) => el("th", { scope: "col", class: "nbt-whole" }, text(key)));
    const best = (evals) => evals.items.reduce((low, item) => (item.loss !== null && !(item.loss >= low) ? item.loss : low), undefined);
    this.table.replaceChildren(el("tr", {}, ...head), ...runs.map((run, k) => el("tr", {},
      el("th", { scope: "row", class: "nbt-text", style: "color:inherit;min-width:100px", title: this.label(run) }, this.swatch(k), short(this.label(run))), el("td", { class: "nbt-whole" }, text(`state.${run.status.state}`)),
      el("td", { class: "nbt-whole" }, run.status.total ? `${number(run.status.step)} / ${number(run.status.total)}` : number(run.status.step)), el("td", {}, number(run.smoothed.at(-1))),
      el("td", {}, run.evals.items.length ? number(best(run.evals)) : MISSING))));
  }

  /** A run's name, and its id where another one has the same. */
  label({ status }) {
    const namesakes = this.model.get("pictures").filter((picture) => picture.status.name === status.name);
    return namesakes.length > 1 ? `${status.name} (${status.id})` : status.name;
  }

  showSpecs() {
    const rows = this.model.get("specs");
    if (!rows.length) return setText(this.specs, text("compare.same"));
    const names = this.model.get("pictures").map((picture) => {
      const name = this.label(picture);
      return el("th", { scope: "col", class: "nbt-text", title: name }, short(name));
    });
    this.specs.replaceChildren(el("table", {}, el("tr", {}, el("th", { scope: "col" }, text("compare.key")), ...names),
      ...rows.map(([key, ...values]) => el("tr", {}, el("th", { scope: "row" }, key), ...values.map((value) => el("td", { class: "nbt-text", dir: "auto" }, value || MISSING))))));
  }

  destroy() {
    cancelAnimationFrame(this.frame);
    this.sized.disconnect();
    this.end();
    this.model.off("change:pictures", this.changed);
    this.chart.destroy();
  }
}

function short(name) {
  const letters = [...name];
  return letters.length > HEAD ? `${letters.slice(0, HEAD).join("")}…` : name;
}

export default panel((model) => new View(model));
