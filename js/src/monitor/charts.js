// The charts: Plotly when it is there, until then (and where it cannot load) a plain line of SVG.

import { el, setAttribute } from "../shared/dom.js";
import { extremes } from "../shared/rows.js";
import { text } from "../shared/texts.js";

const MARGIN = { l: 46, r: 12, t: 8, b: 30 };

export class Chart {
  constructor(className) {
    this.node = el("div", { class: `nbt-chart ${className}`, role: "img" });
    this.empty = el("div", { class: "nbt-empty" }, text("waiting"));
    this.host = el("div", { style: "width:100%;height:100%" });
    this.node.append(this.host, this.empty);
  }

  describe(sentence) {
    setAttribute(this.node, "aria-label", sentence);
  }

  /** @param {{ x: ArrayLike<number>, y: ArrayLike<number> }} line what the plain picture shows */
  async draw(plotly, traces, layout, theme, line) {
    this.empty.hidden = line.x.length > 0;
    if (!line.x.length || !this.node.clientWidth) return; // what is hidden is drawn when it is seen, in the size that it has then
    if (!plotly) return this.drawPlain(line, theme);
    this.plain?.remove();
    this.plain = null;
    if (this.width === undefined) this.resize();
    this.plotly = plotly;
    const config = { displayModeBar: false, responsive: false, showTips: false, doubleClick: "reset+autosize" };
    await plotly.react(this.host, traces, { ...layout, width: this.width, height: this.height }, config);
  }

  resize() {
    if (!this.node.clientWidth) return;
    this.width = Math.max(80, this.node.clientWidth);
    this.height = Math.max(60, this.node.clientHeight);
  }

  drawPlain({ x, y }, theme) {
    this.plain ??= this.node.insertBefore(el("svg", { class: "nbt-plain", preserveAspectRatio: "none" }), this.empty);
    this.plain.replaceChildren(el("polyline", {
      points: plainPoints(x, y),
      fill: "none",
      stroke: theme.loss,
      "stroke-width": "1.5",
      "vector-effect": "non-scaling-stroke",
    }));
    setAttribute(this.plain, "viewBox", "-20 -20 1040 1040");
  }

  destroy() {
    this.plotly?.purge(this.host);
  }
}

/** Points of a polyline in a box of 1000 × 1000. */
export function plainPoints(x, y) {
  const pairs = Array.from(x, (value, k) => [value, y[k]]).filter(([a, b]) => Number.isFinite(a) && Number.isFinite(b));
  if (!pairs.length) return "";
  const range = (k) => [Math.min(...pairs.map((p) => p[k])), Math.max(...pairs.map((p) => p[k]))];
  const scale = (value, [low, high]) => (1000 * (value - low)) / (high - low || 1);
  const [rx, ry] = [range(0), range(1)];
  return pairs.map((p) => `${scale(p[0], rx).toFixed(1)},${(1000 - scale(p[1], ry)).toFixed(1)}`).join(" ");
}

export class LossChart extends Chart {
  /** @param {(low: number, high: number) => void} looked somebody looks at these steps */
  constructor(looked) {
    super("nbt-chart-loss");
    this.looked = looked;
  }

  async draw(...all) {
    await super.draw(...all);
    if (this.listening || !this.plotly) return;
    this.listening = true;
    this.host.on("plotly_relayout", () => {
      clearTimeout(this.later);
      this.later = setTimeout(() => {
        const { range, autorange } = this.host.layout.xaxis;
        if (!autorange) this.looked(range[0], range[1]);
      }, 60);
    });
  }

  update(plotly, store, smoothed, theme, { log, clip }) {
    const { rows, evals } = store;
    const step = rows.column("step");
    const raw = extremes(step, rows.column("loss_min"), rows.column("loss_max"), rows.column("count"));
    const traces = [
      line(text("loss.raw"), raw, theme.loss, { width: 1, opacity: theme.dark ? 0.5 : 0.38 }),
      line(text("loss.smooth"), { x: step.slice(), y: smoothed }, theme.loss, { width: 2.5 }),
    ];
    if (evals.length) traces.push(...evalTraces(evals, theme));
    const layout = base(theme, {
      showlegend: true,
      legend: { orientation: "h", x: 1, xanchor: "right", y: 1, yanchor: "top", bgcolor: "rgba(0,0,0,0)", font: { size: 11 } },
      xaxis: { title: { text: text("step", { step: "" }).trim(), standoff: 4 } },
      yaxis: { type: log ? "log" : "linear", ...(clip ? clipped(smoothed, evals, log) : { autorange: true }) },
      hovermode: "x unified",
      uirevision: `${log}-${clip}`,
    });
    return this.draw(plotly, traces, layout, theme, { x: step, y: smoothed });
  }
}

/** One of several beside each other: few ticks, and no words where nothing is known yet. */
export class Small extends Chart {
  constructor(more = "") {
    super(`nbt-chart-small ${more}`);
    this.empty.textContent = "";
  }

  drawSmall(plotly, traces, theme, yaxis, line) {
    const layout = base(theme, { margin: { l: 46, r: 8, t: 4, b: 20 }, xaxis: { nticks: 3 }, yaxis: { nticks: 4, ...yaxis }, hovermode: "x" });
    return this.draw(plotly, traces, layout, theme, line);
  }
}

export class SmallChart extends Small {
  constructor(column, colour) {
    super();
    Object.assign(this, { column, colour });
  }

  update(plotly, store, theme, name, { ceiling = 0, unit = 1 } = {}) {
    const x = store.rows.column("step").slice();
    const y = Float64Array.from(store.rows.column(this.column), (value) => value / unit);
    const traces = [line(name, { x, y }, theme[this.colour], { width: 1.8 })];
    if (ceiling > 0) traces.push(planLine(x, ceiling / unit, theme));
    const axis = { rangemode: this.column === "learning_rate" ? "normal" : "tozero", exponentformat: this.column === "tokens_per_second" ? "SI" : "power" };
    return this.drawSmall(plotly, traces, theme, axis, { x, y });
  }
}

/** A text in a chart: Plotly reads some tags, and takes entities for what they stand for. */
export const plain = (name) => name.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");

/** What the plan expects, over all steps. */
export const planLine = (x, y, theme) => line(text("memory.plan"), { x: [x[0], x.at(-1)], y: [y, y] }, theme.text, { width: 1, dash: "dash" });

export function line(name, { x, y }, color, { width, dash = "solid", opacity = 1 }) {
  return { type: "scatter", mode: x.length > 1 ? "lines" : "markers", name: plain(name), x, y, opacity, line: { color, width, dash }, marker: { color, size: 5 } };
}

function evalTraces(evals, theme) {
  const best = evals.findLast((item) => item.best);
  const traces = [{
    type: "scatter",
    mode: "lines+markers",
    name: text("loss.eval"),
    x: evals.map((item) => item.step),
    y: evals.map((item) => item.loss),
    line: { color: theme.eval, width: 1.5, dash: "dot" },
    marker: { color: theme.eval, symbol: "diamond", size: 7 },
  }];
  if (best) {
    traces.push({
      type: "scatter",
      mode: "markers",
      name: text("loss.best"),
      x: [best.step],
      y: [best.loss],
      marker: { color: "rgba(0,0,0,0)", symbol: "circle", size: 15, line: { color: theme.eval, width: 2 } },
    });
  }
  return traces;
}

// Without the outliers: what the smoothed line and the held-out points cover, and a little more.
function clipped(smoothed, evals, log) {
  const values = [...smoothed, ...evals.map((item) => item.loss)].filter((v) => Number.isFinite(v) && (!log || v > 0));
  if (!values.length) return { autorange: true };
  const [low, high] = [Math.min(...values), Math.max(...values)].map((v) => (log ? Math.log10(v) : v));
  const room = 0.08 * (high - low || Math.abs(high) || 1);
  return { autorange: false, range: [low - room, high + room] };
}

export function base(theme, { xaxis = {}, yaxis = {}, ...rest }) {
  const axis = { gridcolor: theme.grid, zeroline: false, linecolor: theme.grid, automargin: false, fixedrange: false };
  return {
    margin: MARGIN,
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: theme.text, size: 11, family: theme.font },
    showlegend: false,
    hoverlabel: { bgcolor: theme.paper, bordercolor: theme.text, font: { color: theme.text, size: 11 } },
    uirevision: "same",
    ...rest,
    xaxis: { ...axis, tickangle: 0, ...xaxis }, // Plotly turns numbers where they are many, and a small chart cuts them
    yaxis: { ...axis, ...yaxis },
  };
}
