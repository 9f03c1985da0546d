// The form: a spec by clicking, in three steps. Every key is checked by the kernel as it is typed; each error stands beside what caused it.

import { coded, el, freshId, setAttribute, setText } from "../shared/dom.js";
import { bytes, duration, number } from "../shared/format.js";
import { InView } from "../shared/inview.js";
import { insertCell } from "../shared/insert.js";
import { Nested } from "../shared/nested.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import { DataStep } from "./data.js";
import { Fields } from "./fields.js";
import { ModelStep } from "./models.js";
import { Settings } from "./settings.js";
import "./texts.js";
import { TrainStep } from "./train.js";

const TYPED = 350; // milliseconds without a key before it is checked
const STEPS = ["data", "model", "train"];

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, monitors: new Map() });
    this.build(model.get("setup"));
    this.endTheme = followTheme(this.root);
    this.handlers = {
      "change:values": () => this.fill(model.get("values")),
      "change:checked": () => this.showChecked(),
      "change:costs": () => this.showCosts(),
      "change:reading": () => this.showReading(),
      "change:monitors": () => this.showMonitors(),
      "change:name": () => { this.name.value = model.get("name") ?? "run"; },
      "change:machine": () => this.models.showMachine(model.get("machine") ?? ""),
      "change:judged": () => this.models.show(model.get("judged")),
    };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(name, handler);
    for (const handler of Object.values(this.handlers)) handler();
  }

  build(setup) {
    this.fields = new Fields(setup, () => this.later());
    this.slots = Object.fromEntries(STEPS.map((name) => [name, el("div", { class: "nbt-error", role: "alert", hidden: true })]));
    this.data = new DataStep(this, setup);
    this.models = new ModelStep(this);
    this.train = new TrainStep(this, setup);
    this.settings = new Settings(this, setup);
    this.cost = el("span", { role: "status", class: "nbt-cost" });
    this.said = el("span", { class: "nbt-soft", role: "status" });
    this.name = el("input", { type: "text", size: 12, spellcheck: "false" });
    this.start = el("button", { type: "button", class: "nbt-btn nbt-main", onclick: () => this.begin() }, text("form.start"));
    this.host = el("div", { class: "nbt-runs" });
    this.bar = new InView("nbt-go");
    const step = (name, k, part) => {
      const id = freshId("step");
      return el("div", { class: "nbt-step", role: "group", "aria-labelledby": id, "data-step": name }, el("h3", { id }, el("span", { class: "nbt-nth" }, String(k)), text(`form.step.${name}`)), part.node);
    };
    this.root = el("section", { class: "nbt nbt-form", role: "region", "aria-label": text("form"), "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "nbt-steps" }, step("data", 1, this.data), step("model", 2, this.models), step("train", 3, this.train)),
      this.settings.node,
      this.bar.node(el("label", {}, text("form.name"), this.name), this.start,
        el("button", { type: "button", class: "nbt-btn", onclick: () => this.insert() }, text("form.insert")), this.cost, this.said),
      this.host);
    this.bar.watch();
    this.root.addEventListener("dragover", (event) => event.preventDefault());
    this.root.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.data.upload(event.dataTransfer.files[0]);
    });
  }

  later(work = () => this.check()) {
    clearTimeout(this.timer);
    this.typing = () => { this.typing = null; return work(); };
    this.timer = setTimeout(this.typing, TYPED);
  }

  check() {
    clearTimeout(this.timer);
    this.typing = null;
    this.models.mark();
    return this.do("check", { values: this.fields.typed() });
  }

  async readColumns(source, format, columns) {
    const { value } = await this.do("read", { source, format, columns });
    if (value) this.fill(value);
  }

  async do(what, values, buffers = []) {
    const answer = await this.wishes.ask(what, values, buffers);
    setText(this.said, answer.error ?? "");
    return answer;
  }

  fill(values) {
    this.fields.fill(values);
    this.models.mark();
  }

  showChecked() {
    const { yaml = "", error, begun = true } = this.model.get("checked");
    this.settings.show(yaml);
    this.showError(error, begun);
    this.start.disabled = Boolean(error);
    this.data.pick.classList.toggle("nbt-main", !begun);
    if (error) this.showCosts();
  }

  showReading() {
    this.data.show(this.model.get("reading"));
    const { error, begun } = this.model.get("checked");
    if (error) this.showError(error, begun); // what is asked among the rows is no error
  }

  /** Beside the step that it is about; before anything was chosen nothing is wrong: it says what comes next. */
  showError(error, begun = true) {
    for (const slot of Object.values(this.slots)) slot.hidden = true;
    this.fields.blame(error && begun ? error.key : "");
    if (!error) return;
    const key = error.key ?? "";
    if (key === "data" && this.model.get("reading").sources?.some((source) => source.asks)) return; // it is asked there
    const slot = this.slots[STEPS.includes(key) ? key : begun ? "train" : "data"];
    slot.hidden = false;
    slot.classList.toggle("nbt-next", !begun);
    if (!begun) return slot.replaceChildren(el("p", {}, ...coded(text("form.next"))));
    const changes = (error.changes ?? []).map((change) => el("button", { type: "button", class: `nbt-btn${error.changes[1] ? "" : " nbt-main"}`, "data-do": "mend", onclick: () => this.mend(change) },
      change.rows ? text("form.skip") : change.write ? text("form.write", { value: `${change.write}: ${change.values[change.write]}` }) : text("form.leave", { key: change.leave })));
    const reveal = key && !STEPS.includes(key) ? el("button", { type: "button", class: "nbt-btn", onclick: () => this.settings.reveal(key) }, text("form.reveal", { title: this.fields.all.get(key)?.title ?? key })) : null;
    slot.replaceChildren(el("p", { class: "nbt-text" }, ...coded([error.place, error.cause].filter(Boolean).join(": "))),
      error.fix ? el("p", { class: "nbt-soft nbt-text" }, ...coded(error.fix)) : "", el("div", { class: "nbt-row" }, ...changes, ...(reveal ? [reveal] : [])));
  }

  mend({ values }) {
    for (const [key, value] of Object.entries(values)) this.fields.put(key, value);
    this.check();
  }

  showCosts() {
    const costs = this.model.get("costs");
    setAttribute(this.root, "data-costs", costs.state ?? "");
    const wrong = Boolean(this.model.get("checked").error); // what is known are the costs of the spec before
    this.train.hide(wrong || !costs.rows);
    if (wrong) return setText(this.cost, "");
    if (costs.state === "failed") this.showError(costs.error);
    if (costs.state !== "known") return setText(this.cost, costs.state === "working" ? text("form.working") : "");
    this.train.hide(false);
    this.fields.showChosen(costs.chosen);
    this.train.show(costs);
    this.models.mark();
    const parts = [
      this.models.title,
      text("form.memory", { name: text(costs.vram ? "memory.gpu" : "memory.cpu"), peak: bytes(costs.peak), available: bytes(costs.available) }),
      text("form.time", { time: duration(Math.max(1, costs.seconds)), steps: number(costs.steps) }),
      costs.download ? text("form.download", { size: bytes(costs.download) }) : "",
    ];
    setText(this.cost, parts.filter(Boolean).join(" · "));
  }

  /** The spec as a cell below this one; where the page has no way to make one, it is copied. */
  async insert() {
    const cell = `%%finetune --name ${this.name.value.trim() || "run"}\n${this.settings.yaml.value}`;
    if (insertCell(this.model, this.root, cell)) return setText(this.said, text("form.inserted"));
    await navigator.clipboard.writeText(cell);
    setText(this.said, text("form.copied"));
  }

  async begin() {
    this.begun = true;
    await this.typing?.(); // what was typed last counts
    this.start.disabled = true;
    const name = this.name.value.trim() || "run";
    const { error } = await this.do("start", { name });
    if (!error) setText(this.said, text("form.starting", { name }));
    this.start.disabled = Boolean(this.model.get("checked").error);
    if (error) return;
    this.started = name;
  }

  /** The monitors of the runs that were started, the newest first: widgets of their own, shown here. */
  async showMonitors() {
    const wanted = this.model.get("monitors").map((id) => id.replace("IPY_MODEL_", ""));
    for (const id of wanted.toReversed()) {
      if (this.monitors.has(id)) continue;
      const host = el("div");
      this.host.prepend(host);
      const nested = new Nested(this.model, host);
      this.monitors.set(id, nested);
      const shown = await nested.show(id);
      if (shown === false) setText(this.said, text("form.elsewhere", { call: `nbtune.attach("${this.started ?? "run"}").monitor()` }));
      else if (this.begun) {
        setText(this.said, "");
        requestAnimationFrame(() => host.scrollIntoView({ block: "nearest" }));
      }
    }
  }

  destroy() {
    clearTimeout(this.timer);
    this.endTheme();
    this.bar.end();
    for (const nested of this.monitors.values()) nested.drop();
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
  }
}

export default panel((model, wishes) => new View(model, wishes));
