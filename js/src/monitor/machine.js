// What the machine does while a run trains: memory by what holds it, against the plan, and how busy the device is.

import { el } from "../shared/dom.js";
import { bytes, MISSING } from "../shared/format.js";
import { text } from "../shared/texts.js";
import { line, planLine, Small } from "./charts.js";

export const PARTS = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9"];
export const DASHES = ["solid", "dash", "dot", "dashdot", "longdash"];
const GIB = 1024 ** 3;

/** The plan's parts that a measured one holds; in the order in which they are stacked. */
const PLANNED = { weights: ["weights"], adapter: ["adapter"], state: ["gradients", "optimizer"], work: ["activations", "head"], kept: ["reserve"], rest: ["gradients", "optimizer", "activations", "head", "reserve"] };

/** @returns {Array<{ name: string, at: number, now: number, most: number, planned: number }>} what stays is at the bottom */
export function memoryParts(machine, { memory_parts: names = [], memory_plan: plan = [] }) {
  const planned = new Map(plan), order = Object.keys(PLANNED);
  return !machine.length ? [] : names.map((name, k) => ({
    name,
    at: k, // events are written with their keys in order of letters
    now: machine.at(-1).parts[k] ?? 0,
    most: machine.reduce((high, item) => Math.max(high, item.parts[k] ?? 0), 0),
    planned: (PLANNED[name] ?? []).reduce((sum, part) => sum + (planned.get(part) ?? 0), 0),
  })).sort((a, b) => order.indexOf(a.name) - order.indexOf(b.name));
}

const label = (name) => text(`memory.${name}`);

/** Memory over steps, stacked, with a line where the plan is. */
export class MemoryChart extends Small {
  constructor() {
    super("nbt-chart-memory");
  }

  update(plotly, { machine, status }, theme, name, planned) {
    const x = machine.map((item) => item.step);
    const parts = memoryParts(machine, status);
    const values = parts.map(({ at }) => machine.map((item) => (item.parts[at] ?? 0) / GIB));
    const top = x.map((_, i) => values.reduce((sum, part) => sum + part[i], 0));
    const traces = parts.map(({ name: part }, k) => ({
      ...line(label(part), { x, y: values[k] }, PARTS[k % PARTS.length], { width: 1, dash: DASHES[k % DASHES.length] }), stackgroup: "held", mode: "lines",
    }));
    if (planned > 0) traces.push(planLine(x, planned / GIB, theme));
    const words = parts.filter((part) => part.now > 0).map((part) => `${label(part.name)} ${bytes(part.now)}`);
    this.describe(text("chart.memory", { name, value: bytes((top.at(-1) ?? 0) * GIB), planned: bytes(planned), parts: words.join(", ") }));
    return this.drawSmall(plotly, traces, theme, { rangemode: "tozero" }, { x, y: top });
  }
}

/** How busy the device is, in percent of the time; above it a band a reason where it was slowed, below it why in words. */
export class BusyChart extends Small {
  words = el("small");

  update(plotly, { machine, slowed }, theme, name) {
    const known = machine.filter((item) => item.busy !== null);
    const [x, y] = [known.map((item) => item.step), known.map((item) => item.busy)];
    const steps = ({ spans }) => spans.map(([first, last]) => (first < last ? `${first}–${last}` : first)).join(", ");
    const said = slowed.map((one) => text(`slowed.${one.why}`, one) + text("slowed", { ...one, steps: steps(one) }));
    const hot = ({ why }) => Number(why === "heat");
    const bands = slowed.flatMap((one, k) => one.spans.map(([first, last]) => ({
      ...line("", { x: [first - 0.5, last + 0.5], y: [110 + 9 * k, 110 + 9 * k] }, PARTS[hot(one)], { width: 5, dash: DASHES[2 - 2 * hot(one)] }), mode: "lines+markers", hoverinfo: "skip",
    })));
    this.words.replaceChildren(...slowed.map((one, k) => el("div", {}, mark(hot(one)), said[k])));
    this.describe([text("chart.other", { name, value: y.length ? `${Math.round(y.at(-1))} %` : MISSING }), ...said].join(" "));
    return this.drawSmall(plotly, [line(name, { x, y }, theme.busy, { width: 1.8 }), ...bands], theme, { range: [0, 104 + 10 * slowed.length], autorange: false }, { x, y });
  }
}

/** A colour's mark beside its name. */
export const mark = (k) => el("svg", { class: "nbt-mark", viewBox: "0 0 10 10", "aria-hidden": "true" }, el("rect", { width: 10, height: 10, fill: PARTS[k % PARTS.length] }));
