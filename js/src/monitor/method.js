// What a method tells besides the loss: shares (accuracy, F1), rewards and perplexity, lengths of answers, how far
// their distribution is spread or has moved; of steps and of held-out rows.

import { el } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";
import { line, Small } from "./charts.js";
import { DASHES, mark, PARTS } from "./machine.js";

/** What can share an axis, by its names, in the order of the charts; rewards are all else. */
export const KINDS = {
  shares: /(accuracy|f1|match|valid|kept|rouge.|bleu|chrf|^cut)$/,
  lengths: /^length$/,
  spread: /^(kl|entropy)$/,
  experts: /experts?$|^aux/,
  held: /GiB$/,
  pace: /^process/,
  link: /GB.s$/,
  rewards: /./,
};

/** Names of the figures that a run tells, by what can share an axis. */
export function figuresOf(metrics) {
  const names = [...new Set(metrics.flatMap((item) => Object.keys(item.values)))].slice(0, 20);
  const kinds = Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, []]));
  for (const name of names) kinds[Object.keys(KINDS).find((kind) => KINDS[kind].test(name))].push(name);
  return kinds;
}

/** A figure's words; of a method that came later its own name. */
export function words(name) {
  const key = `metric.${name}`;
  const known = text(key);
  return known === key ? name.replaceAll("_", " ") : known;
}

/** Some figures over steps, each a line, with diamonds where held-out rows were measured. */
export class MethodChart extends Small {
  constructor() {
    super();
    this.caption = el("figcaption");
  }

  /** The title, and which colour is which where there are several. */
  name(title, names) {
    const now = [title, ...names].join("\n");
    if (now === this.named) return;
    this.named = now;
    const keys = names.length > 1 ? names.map((name, k) => el("small", { style: "white-space:nowrap" }, mark(k), words(name))) : [];
    this.caption.replaceChildren(title, ...keys.flatMap((key) => [" ", key]));
  }

  /** @param {string[]} names @param {boolean} shares they lie between 0 and 1 */
  update(plotly, { metrics, evals }, theme, title, names, shares) {
    const lines = names.map((name, k) => {
      const known = metrics.filter((item) => Number.isFinite(item.values[name]));
      return { name, colour: PARTS[k % PARTS.length], dash: DASHES[k % DASHES.length], x: known.map((item) => item.step), y: known.map((item) => item.values[name]) };
    });
    const traces = lines.map((one) => line(words(one.name), one, one.colour, { width: 1.6, dash: one.dash }));
    for (const { name, colour } of lines) {
      const held = evals.filter((item) => Number.isFinite(item.metrics?.[name]));
      if (!held.length) continue;
      traces.push({
        type: "scatter", mode: "markers", name: `${words(name)}, ${text("loss.eval")}`, x: held.map((item) => item.step), y: held.map((item) => item.metrics[name]),
        marker: { color: colour, symbol: "diamond-open", size: 7 },
      });
    }
    if (names.join() === "cut") title = words("cut");
    this.name(title, names);
    this.describe(text("chart.other", { name: title, value: lines.map((one) => `${words(one.name)} ${number(one.y.at(-1))}`).join(", ") }));
    return this.drawSmall(plotly, traces, theme, shares ? { range: [-0.04, 1.04], autorange: false } : {}, lines[0]);
  }
}
