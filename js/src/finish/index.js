// The card of a run that has ended: what it learnt, base against tuned on held-out rows, answers before and after.

import { marked } from "../shared/diff.js";
import { el, setAttribute, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";

const LISTENED = ["facts", "outcome", "state"];

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes });
    this.numbers = el("div", { class: "nbt-tiles" });
    this.held = el("p", { role: "status" });
    this.answers = el("div", { class: "nbt-pairs" });
    this.ask = el("div", { class: "nbt-row" }, el("button", { type: "button", class: "nbt-btn", onclick: () => wishes.ask("measure") }, text("finish.ask")), el("span", { class: "nbt-soft" }, text("finish.ask.why")));
    this.code = el("pre", { tabindex: 0 });
    this.said = el("span", { class: "nbt-soft", role: "status" });
    this.use = el("details", {}, el("summary", {}, text("finish.code")), this.code,
      el("div", { class: "nbt-row" }, el("button", { type: "button", class: "nbt-btn", onclick: () => this.copy() }, text("finish.copy")), this.said));
    this.root = el("section", { class: "nbt nbt-finish", role: "region", "aria-label": text("finish"), "data-lm-suppress-shortcuts": "true" },
      this.numbers, this.held, this.answers, this.ask, this.use);
    this.endTheme = followTheme(this.root);
    this.changed = () => this.show();
    for (const name of LISTENED) model.on(`change:${name}`, this.changed);
    this.show();
  }

  show() {
    const [facts, outcome, state] = LISTENED.map((name) => this.model.get(name));
    setAttribute(this.root, "data-state", state);
    this.numbers.replaceChildren(...["loss", "eval"].filter((key) => facts[key]).map((key) => fall(text(`finish.${key}`, { n: number(facts.last), step: number(facts.step) }), facts[key].map((value) => number(value, 3)))),
      ...(facts.scores ?? []).map(([name, ...pair]) => fall(name, pair)));
    setText(this.held, words(outcome, state));
    this.held.classList.toggle("nbt-soft", state !== "known");
    this.ask.hidden = !["asks", "failed"].includes(state);
    this.answers.replaceChildren(...(outcome.asked ?? []).map(pair),
      ...(state === "working" && !outcome.asked?.length ? [el("div", { class: "nbt-skeleton" }), el("div", { class: "nbt-skeleton" })] : []));
    this.use.hidden = !facts.code;
    setText(this.code, facts.code ?? "");
  }

  async copy() {
    await navigator.clipboard.writeText(this.code.textContent);
    setText(this.said, text("finish.copied"));
  }

  destroy() {
    this.endTheme();
    for (const name of LISTENED) this.model.off(`change:${name}`, this.changed);
  }
}

const fall = (name, pair) => el("div", { class: "nbt-tile" }, el("div", { class: "nbt-soft" }, name),
  el("div", { class: "nbt-value" }, pair.join(" → ")));

function words(outcome, state) {
  if (outcome.error) return text("finish.failed", { error: outcome.error });
  if (outcome.rows == null) return state === "working" ? text("finish.working") : "";
  const { rows: n, base, tuned, low, high, better } = outcome;
  if (!n) return text("finish.none");
  if (base === null) return "";
  const short = (value) => number(value, 3);
  const head = text("finish.rows", { n, base: short(base), tuned: short(tuned) });
  // of what is said to be higher, the interval is of how much higher
  const worse = tuned > base, [from, to] = worse && low !== null ? [-high, -low] : [low, high];
  const about = { n, better, lower: short(base - tuned), higher: short(tuned - base), low: short(from), high: short(to) };
  return `${head}: ${text(`finish.${low === null ? (worse ? "few.higher" : "few") : worse ? "higher" : "lower"}`, about)}`;
}

/** A prompt and its two answers; what is new in the second is marked. */
function pair({ prompt, base, tuned, wanted, seen }) {
  const said = (key, ...words) => el("div", { class: "nbt-text", dir: "auto" }, el("small", {}, text(`finish.${key}`)), ...words);
  return el("div", { class: "nbt-twin" },
    el("p", { class: "nbt-text", dir: "auto" }, el("strong", {}, prompt), seen ? el("small", {}, ` (${text("finish.seen")})`) : ""),
    said("before", base), said("after", ...marked(base, tuned)), wanted ? said("wanted", wanted) : "");
}

export default panel((model, wishes) => new View(model, wishes));
