// The form: a spec by clicking. Every key is checked by the kernel as it is typed; the YAML beside it is the same spec.

import { el, focusFrom, freshId, setAttribute, setText } from "../shared/dom.js";
import { bytes, duration, number } from "../shared/format.js";
import { insertCell } from "../shared/insert.js";
import { Nested } from "../shared/nested.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";

const TYPED = 350; // milliseconds without a key before it is checked

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, inputs: new Map(), chosen: new Map() });
    this.build(model.get("setup"));
    this.endTheme = followTheme(this.root);
    this.handlers = {
      "change:values": () => this.fill(model.get("values")),
      "change:checked": () => this.showChecked(),
      "change:costs": () => this.showCosts(),
      "change:child": () => this.showChild(),
      "change:judged": () => this.showModels(),
    };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(name, handler);
    this.fill(model.get("values"));
    this.showChecked();
    this.showCosts();
    this.showChild();
    this.showModels();
  }

  build(setup) {
    this.lists = { model: this.list(setup.models), data: this.list(setup.data) };
    const made = setup.fields.map((field) => [field, this.field(field)]);
    const part = (first) => made.filter(([field]) => field.first === first).map(([, node]) => node);
    this.yaml = el("textarea", { spellcheck: "false", rows: 9, "aria-label": text("form.yaml"), oninput: () => this.later(() => this.do("yaml", { text: this.yaml.value })) });
    this.error = el("div", { class: "nbt-error nbt-text", role: "alert", hidden: true });
    this.meter = el("div", { class: "nbt-meter" }, el("div"));
    this.cost = el("div", { role: "status" });
    this.why = el("table");
    this.said = el("span", { class: "nbt-soft", role: "status" });
    this.name = el("input", { type: "text", value: "run", size: 12, spellcheck: "false" });
    this.start = el("button", { type: "button", class: "nbt-btn nbt-main", onclick: () => this.begin() }, text("form.start"));
    this.host = el("div");
    this.nested = new Nested(this.model, this.host);
    const file = el("input", { type: "file", class: "nbt-sr", "aria-label": text("form.upload"), onchange: () => this.upload(file.files[0]) });
    const heading = text("form");
    this.root = el("section", { class: "nbt nbt-form", role: "region", "aria-label": heading, "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "nbt-row" }, this.presets(setup)),
      el("div", { class: "nbt-columns" },
        el("div", {}, el("div", { class: "nbt-six" }, ...part(true)),
          el("div", { class: "nbt-row", style: "margin-top:10px" }, el("button", { type: "button", class: "nbt-btn", onclick: () => file.click() }, text("form.upload")), file)),
        el("div", { class: "nbt-side" }, el("label", { style: "display:block;font-weight:600" }, text("form.yaml")), this.yaml, this.error,
          this.meter, this.cost, el("details", {}, el("summary", {}, text("form.why")), this.why))),
      el("details", {}, el("summary", {}, text("form.more")), el("div", { class: "nbt-others" }, ...part(false))),
      el("div", { class: "nbt-row" }, el("label", {}, text("form.name"), this.name), this.start,
        el("button", { type: "button", class: "nbt-btn", onclick: () => this.insert() }, text("form.insert")), this.said),
      this.host, ...Object.values(this.lists));
    this.root.addEventListener("dragover", (event) => event.preventDefault());
    this.root.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.upload(event.dataTransfer.files[0]);
    });
  }

  list(options) {
    return el("datalist", { id: freshId("list") }, ...options.map((value) => el("option", { value })));
  }

  /** Beside each model of the list: its size, and whether it can be trained here. */
  showModels() {
    const known = new Map(this.model.get("judged").map((found) => [found.name, found]));
    for (const option of this.lists.model.children) {
      const found = known.get(option.value);
      if (!found) continue;
      const how = found.fits ? text("form.fits", { peak: bytes(found.peak), available: bytes(found.available), weights: found.weights }) : text("form.too-big");
      option.label = `${bytes(found.bytes)} · ${how}`;
    }
  }

  presets(setup) {
    const pick = (names, kind) => {
      const node = el("select", { onchange: () => this.usePreset() }, el("option", { value: "" }, text("form.own")), ...names.map((name) => el("option", { value: name }, text(`${kind}.${name}`))));
      return node;
    };
    [this.goal, this.care] = [pick(setup.goals, "goal"), pick(setup.care, "care")];
    return el("div", { class: "nbt-row" }, el("label", {}, text("form.goal"), this.goal), el("label", {}, text("form.care"), this.care));
  }

  async usePreset() {
    const goal = this.goal.value || "style";
    const { value } = await this.wishes.ask("preset", { goal, care: this.care.value || "balanced" });
    for (const [key, wanted] of Object.entries(value ?? {})) this.put(key, wanted);
    this.check();
  }

  field(field) {
    const id = freshId("field");
    const changed = () => this.later(() => this.check());
    const hint = field.default === null ? text("form.auto") : text("form.default", { value: field.default });
    let input;
    if (field.kind === "choice" || field.kind === "bool") {
      const options = field.kind === "bool" ? [["true", text("form.yes")], ["false", text("form.no")]] : field.choices.map((name) => [name, name]);
      input = el("select", { id, onchange: changed }, el("option", { value: "" }, hint), ...options.map(([value, label]) => el("option", { value }, label)));
    } else {
      const list = this.lists[field.kind]?.id;
      input = el("input", { id, type: "text", list, placeholder: field.kind === "data" ? field.example : hint, spellcheck: "false", autocomplete: "off", oninput: changed });
    }
    this.inputs.set(field.key, input);
    const chosen = el("span", { class: "nbt-chosen" });
    this.chosen.set(field.key, chosen);
    const help = el("small", { id: `${id}-help` }, field.help, chosen);
    setAttribute(input, "aria-describedby", help.id);
    return el("div", { class: "nbt-field" }, el("label", { for: id }, field.title, field.unit ? el("span", { class: "nbt-soft", style: "font-weight:400" }, ` (${field.unit})`) : null), input, help);
  }

  later(work) {
    clearTimeout(this.timer);
    this.typing = () => { this.typing = null; return work(); };
    this.timer = setTimeout(this.typing, TYPED);
  }

  /** What the fields say, as it was typed; the kernel reads it as YAML. */
  typed() {
    return Object.fromEntries([...this.inputs].filter(([, input]) => input.value.trim() !== "").map(([key, input]) => [key, input.value.trim()]));
  }

  check() {
    return this.do("check", { values: this.typed() });
  }

  async do(what, values) {
    const answer = await this.wishes.ask(what, values);
    if (answer.error) setText(this.said, answer.error);
    return answer;
  }

  put(key, value) {
    const input = this.inputs.get(key);
    if (input) input.value = value === null || value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : String(value);
  }

  fill(values) {
    for (const key of this.inputs.keys()) this.put(key, values[key]);
  }

  showChecked() {
    const { yaml = "", error, begun = true } = this.model.get("checked");
    if (focusFrom(this.root) !== this.yaml) this.yaml.value = yaml;
    this.showError(error);
    this.error.classList.toggle("nbt-next", Boolean(error) && !begun);
    if (error && !begun) setText(this.error, text("form.next")); // nothing is wrong yet: what comes next
    this.start.disabled = Boolean(error);
    if (error) this.showCosts();
  }

  showError(error) {
    this.error.hidden = !error;
    if (error) this.error.replaceChildren([error.place, error.cause].filter(Boolean).join(": "), error.fix ? el("div", { class: "nbt-soft" }, text("note.fix", { fix: error.fix })) : "");
  }

  showCosts() {
    const costs = this.model.get("costs");
    setAttribute(this.root, "data-costs", costs.state ?? "");
    const wrong = Boolean(this.model.get("checked").error); // what is known are the costs of the spec before
    this.meter.hidden = wrong || costs.state !== "known";
    if (wrong) return setText(this.cost, "");
    if (costs.state === "failed") this.showError(costs.error);
    if (costs.state !== "known") return setText(this.cost, costs.state === "working" ? text("form.working") : "");
    for (const [key, span] of this.chosen) {
      const value = this.inputs.get(key).value.trim() === "" ? costs.chosen?.[key] : undefined;
      setText(span, value ? ` ${text("form.chosen", { value })}` : "");
    }
    const share = costs.peak / (costs.available || 1);
    this.meter.firstChild.style.width = `${Math.min(100, 100 * share)}%`;
    setAttribute(this.meter, "data-level", share > 1 ? "over" : share > 0.9 ? "tight" : "fits");
    const parts = [
      text("form.memory", { name: text(costs.gpu ? "memory.gpu" : "memory.cpu"), peak: bytes(costs.peak), available: bytes(costs.available) }),
      text("form.time", { time: duration(costs.seconds), steps: number(costs.steps) }),
      costs.download ? text("form.download", { size: bytes(costs.download) }) : "",
    ];
    setText(this.cost, parts.filter(Boolean).join(" · "));
    this.why.replaceChildren(...costs.rows.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "nbt-text" }, value))));
  }

  async upload(file) {
    if (!file) return;
    const answer = await this.wishes.ask("upload", { name: file.name }, [await file.arrayBuffer()]);
    if (answer.error) return setText(this.said, answer.error);
    this.put("data", answer.value);
    this.check();
  }

  /** The spec as a cell below this one; where the page has no way to make one, it is copied. */
  async insert() {
    const cell = `%%finetune --name ${this.name.value.trim() || "run"}\n${this.yaml.value}`;
    if (insertCell(this.model, this.root, cell)) return setText(this.said, text("form.inserted"));
    await navigator.clipboard.writeText(cell);
    setText(this.said, text("form.copied"));
  }

  async begin() {
    this.begun = true;
    clearTimeout(this.timer);
    await this.typing?.(); // what was typed last counts
    setText(this.said, text("form.starting"));
    const { error } = await this.do("start", { name: this.name.value.trim() || "run" });
    if (!error) this.start.disabled = true;
  }

  /** The monitor of the run that was started: a widget of its own, shown here. */
  async showChild() {
    const id = this.model.get("child").replace("IPY_MODEL_", "");
    const shown = await this.nested.show(id);
    if (shown === false) return setText(this.said, text("form.elsewhere", { call: `nbtune.attach("${this.name.value.trim() || "run"}").monitor()` }));
    if (!shown) return;
    setText(this.said, "");
    if (this.begun) requestAnimationFrame(() => this.host.scrollIntoView({ block: "nearest" }));
  }

  destroy() {
    clearTimeout(this.timer);
    this.endTheme();
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
  }
}

export default panel((model, wishes) => new View(model, wishes));
