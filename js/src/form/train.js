// The third step: how it trains. What matters most as sliders, each with what it does to time and memory; what the plan chose, and why.

import { coded, el, setAttribute, setText } from "../shared/dom.js";
import { bytes, count, duration, number } from "../shared/format.js";
import { text } from "../shared/texts.js";

const RANKS = [4, 8, 16, 32, 64, 128];
const REASONS = ["learning rate", "frozen weights", "why"]; // of the plan's rows, those that are choices
const WIDE = 10; // a slider reaches from a tenth of what the plan chose to ten times that
const TICKS = 40;

export class TrainStep {
  constructor(form, setup) {
    this.form = form;
    this.sliders = [
      new Slider(form, "steps", { planned: (costs) => costs.steps, stops: (planned) => around(planned, (value) => Math.max(1, Math.round(value))), also: "epochs", words: number, effect: (n, costs) => text("form.steps.effect", { time: duration(Math.max(1, (costs.seconds / costs.steps) * n)), times: number((n * costs.batch) / Math.max(1, costs.train), 2) }) }),
      new Slider(form, "adapter.r", { planned: () => 16, stops: () => RANKS, words: number, effect: (_, costs) => text("form.rank.effect", { n: count(costs.trainable), memory: bytes(costs.peak) }) }),
      new Slider(form, "learning_rate", { planned: (costs) => costs.rate, stops: (planned) => around(planned, (value) => Number(value.toPrecision(2))), words: (n) => number(n, 3), effect: (n, { planned, own }) => (planned ? text(`form.rate.${n > 3 * planned ? "high" : n < planned / 3 ? "low" : own ? "near" : "good"}`) : "") }),
    ];
    this.meter = el("div", { class: "nbt-meter" }, el("div"));
    this.memory = el("p", { class: "nbt-soft" });
    this.unusual = el("ul", { class: "nbt-findings" });
    this.reasons = el("ul", { class: "nbt-rules nbt-soft" });
    this.why = el("table");
    this.node = el("div", {}, this.presets(setup), form.slots.train, ...this.sliders.map((slider) => slider.node), this.unusual, this.meter, this.memory, this.reasons,
      el("details", {}, el("summary", {}, text("form.why")), el("div", { class: "nbt-scroll", tabindex: 0 }, this.why)));
  }

  presets(setup) {
    const pick = (names, kind) => el("select", { onchange: () => this.usePreset() }, el("option", { value: "" }, text("form.own")), ...names.map((name) => el("option", { value: name }, text(`${kind}.${name}`))));
    [this.goal, this.care] = [pick(setup.goals, "goal"), pick(setup.care, "care")];
    return el("div", { class: "nbt-presets" }, el("label", {}, text("form.goal"), this.goal), el("label", {}, text("form.care"), this.care));
  }

  async usePreset() {
    const { value } = await this.form.do("preset", { goal: this.goal.value || "style", care: this.care.value || "balanced" });
    for (const [key, wanted] of Object.entries(value ?? {})) this.form.fields.put(key, wanted);
    this.form.check();
  }

  /** @param {object} costs the plan; known ones only */
  show(costs) {
    for (const slider of this.sliders) slider.show(costs);
    const share = costs.peak / (costs.available || 1);
    this.meter.firstChild.style.width = `${Math.min(100, 100 * share)}%`;
    setAttribute(this.meter, "data-level", share > 1 ? "over" : share > 0.9 ? "tight" : "fits");
    setText(this.memory, text("form.memory", { name: text(costs.vram ? "memory.gpu" : "memory.cpu"), peak: bytes(costs.peak), available: bytes(costs.available) }));
    this.reasons.replaceChildren(...costs.rows.filter(([name]) => REASONS.includes(name)).map(([name, reason]) => el("li", { class: "nbt-text" }, ...coded(name === "why" ? reason : `${name}${reason.includes(":") ? "" : ":"} ${reason}`))));
    this.unusual.replaceChildren(...costs.unusual.map((each) => this.warned(each)));
    this.why.replaceChildren(...costs.rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "nbt-text" }, ...(name === "packing" && costs.packing ? coded(text(`form.packing.${costs.packing}`)) : coded(value))))));
  }

  /** A value that is far from usual, with what takes it back. What has a slider has its link there. */
  warned({ said, key, alone }) {
    const { fields, settings } = this.form;
    const button = (words, onclick) => el("button", { type: "button", class: "nbt-link", onclick }, words);
    return el("li", { class: "nbt-text" }, el("p", {}, ...coded(said)), !fields.all.has(key) || this.sliders.some((slider) => slider.key === key) ? null : el("div", { class: "nbt-row" },
      alone ? button(text("form.leave", { key }), () => this.form.mend({ values: { [key]: "" } })) : null,
      button(text("form.reveal", { title: fields.all.get(key).title }), () => settings.reveal(key))));
  }

  hide(hidden) {
    for (const node of [this.unusual, this.meter, this.memory, this.reasons]) node.hidden = hidden;
  }
}

/** Values from a tenth to ten times one, evenly apart by their logarithms, with the one itself among them. */
function around(value, rounded) {
  const ticks = Array.from({ length: TICKS + 1 }, (_, k) => rounded(value * WIDE ** ((2 * k) / TICKS - 1)));
  return [...new Set(ticks)];
}

class Slider {
  constructor(form, key, how) {
    Object.assign(this, { form, key, how, stops: [] });
    this.value = el("output");
    this.effect = el("small", {});
    this.range = el("input", { type: "range", min: 0, max: 2, step: 1, value: 1, disabled: true, oninput: () => this.slide() });
    this.auto = el("button", { type: "button", class: "nbt-link", hidden: true, onclick: () => this.set("") }, text("form.auto.back"));
    this.node = el("div", { class: "nbt-slider" }, el("label", {}, el("span", {}, form.fields.all.get(key).title), this.value, this.auto, this.range), this.effect);
  }

  slide() {
    this.set(this.stops[Number(this.range.value)]);
    this.tell(this.stops[Number(this.range.value)]);
  }

  set(value) {
    this.form.fields.put(this.key, value);
    if (this.how.also && value !== "") this.form.fields.put(this.how.also, "");
    this.form.later();
  }

  tell(value) {
    setText(this.value, this.how.words(value));
    setAttribute(this.range, "aria-valuetext", this.how.words(value));
    if (this.costs) setText(this.effect, this.how.effect(value, { ...this.costs, own: this.form.fields.get(this.key) }));
  }

  show(costs) {
    const own = this.form.fields.get(this.key);
    const planned = this.how.planned(costs);
    if (!own || !this.stops.length) this.stops = this.how.stops(planned);
    if (!own) this.planned = planned; // of a value that was asked for nobody has said what the plan would choose
    this.costs = { ...costs, planned: this.planned };
    const value = Number(own) || planned;
    if (!this.stops.includes(value)) this.stops = [...this.stops, value].sort((a, b) => a - b);
    this.range.max = this.stops.length - 1;
    this.range.disabled = false;
    this.range.value = this.stops.indexOf(value);
    this.auto.hidden = !own;
    this.tell(value);
  }
}
