// The export panel: what a run can become, each with its size, what it fits in, and the line of code that makes it.

import { el, setText } from "../shared/dom.js";
import { bytes, guess, MISSING } from "../shared/format.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import { Files } from "./files.js";
import { opened, Push } from "./push.js";
import "./texts.js";

const LISTENED = ["files", "notes", "working"];
const quoted = JSON.stringify;
const option = (value) => el("option", { value }, value);

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, picked: new Set(["q8_0"]) });
    this.build();
    this.endTheme = followTheme(this.root);
    this.changed = () => this.show();
    this.cardCame = () => this.push.take(model.get("card"));
    for (const name of LISTENED) model.on(`change:${name}`, this.changed);
    model.on("change:card", this.cardCame);
    this.whoCame = () => this.push.greet(model.get("account"), model.get("run_name"));
    model.on("change:account", this.whoCame);
    this.whoCame();
    opened(this.push, model.get("card"));
    this.cardCame();
    this.show();
  }

  build() {
    const types = this.model.get("choices").map((choice) => choice.type);
    this.importance = el("input", { type: "checkbox" });
    this.verify = el("input", { type: "checkbox", checked: this.model.get("llama"), disabled: !this.model.get("llama") });
    this.dtype = el("select", { "aria-label": text("export.dtype") }, ...["auto", "bfloat16", "float16", "float32"].map(option));
    this.ollama = el("select", { "aria-label": text("export.ollama.type") }, ...types.map(option));
    this.ollama.value = "q8_0";
    this.said = el("span", { class: "nbt-text", role: "status" });
    this.code = el("code");
    this.codeLine = el("div", { class: "nbt-row nbt-soft nbt-code", hidden: true }, text("code"), this.code);
    this.files = new Files(this.model, this.wishes);
    this.cancel = this.button("cancel", () => this.leave());
    this.push = new Push(this.model, (...wish) => this.do(...wish), () => this.types(), (words) => this.say(words, true));
    this.buttons = [
      this.button("export.make", () => this.gguf()),
      this.button("export.make.adapter", () => this.make("adapter")),
      this.button("export.make.adapter_gguf", () => this.make("adapter_gguf")),
      this.button("export.make.merged", () => this.make("merged", "dtype", this.dtype.value, "auto")),
      this.button("export.make.ollama", () => this.make("ollama", "", this.ollama.value, "q8_0")),
      this.push.go,
    ];
    const [gguf, adapter, adapterGguf, merged, ollama] = this.buttons;
    gguf.classList.add("nbt-main");
    const name = text("export.of", { name: this.model.get("run_name") });
    const llama = this.model.get("llama") ? null : el("span", { class: "nbt-soft" }, text("export.no_llama"), " ", el("code", {}, "pip install 'nbtune[gguf-verify]'"));
    this.root = el("section", { class: "nbt nbt-exportpanel", role: "region", "aria-label": name, "data-lm-suppress-shortcuts": "true" },
      el("h3", { class: "nbt-text" }, name),
      el("div", { class: "nbt-scroll", tabindex: 0 }, this.table()),
      el("div", { class: "nbt-row" }, this.more, el("label", {}, this.importance, text("export.importance")), el("label", {}, this.verify, text("export.verify")), llama),
      el("div", { class: "nbt-row" }, gguf),
      el("div", { class: "nbt-row" }, adapter, adapterGguf, el("span", { class: "nbt-pair" }, merged, this.dtype), el("span", { class: "nbt-pair" }, ollama, this.ollama)),
      el("div", { class: "nbt-row" }, this.said, this.cancel), this.codeLine, this.files.node, this.push.node);
  }

  button(key, onclick) {
    return el("button", { type: "button", class: "nbt-btn", onclick }, text(key));
  }

  table() {
    const head = ["export.type", "export.size", "export.fits", "export.quality", "export.time"].map((key) => el("th", { scope: "col" }, text(key)));
    this.rows = this.model.get("choices").map((choice) => {
      const box = el("input", { type: "checkbox", checked: this.picked.has(choice.type), onchange: () => this.pick(choice.type, box.checked) });
      const [size, fits, time] = [0, 1, 2].map(() => el("td", { class: "nbt-number" })), quality = el("td");
      const node = el("tr", { hidden: !choice.usual && !this.picked.has(choice.type) }, el("td", {}, el("label", {}, box, choice.type)), size, fits, quality, time);
      return { choice, node, size, fits, quality, time };
    });
    this.more = this.button("export.more", () => this.showAll(this.more.getAttribute("aria-expanded") !== "true"));
    this.more.setAttribute("aria-expanded", "false");
    return el("table", { class: "nbt-types" }, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...this.rows.map(({ node }) => node)));
  }

  showAll(on) {
    this.more.setAttribute("aria-expanded", String(on));
    setText(this.more, text(on ? "export.fewer" : "export.more"));
    for (const { choice, node } of this.rows) node.hidden = !on && !choice.usual && !this.picked.has(choice.type);
  }

  pick(type, on) {
    if (on) this.picked.add(type);
    else this.picked.delete(type);
    this.show();
  }

  /** What is picked, in the table's order. */
  types() {
    return this.rows.map(({ choice }) => choice.type).filter((type) => this.picked.has(type));
  }

  gguf() {
    const types = this.types(), importance = this.importance.checked, verify = this.verify.checked || this.verify.disabled;
    const more = [importance && "importance=True", !verify && "verify=False"].filter(Boolean);
    this.do("gguf", { types, importance, verify }, `run.export.gguf(${[...types.map(quoted), ...more].join(", ")})`);
  }

  make(what, argument = "", value = "", usual = "") {
    const kind = value === usual ? "" : value;
    this.do("make", { what, kind }, `run.export.${what}(${kind && `${argument && `${argument}=`}${quoted(kind)}`})`);
  }

  say(words, bad = false) {
    setText(this.said, words);
    this.said.classList.toggle("nbt-bad", bad);
  }

  async do(what, values, code) {
    if (code !== null) setText(this.code, code);
    this.codeLine.hidden = !this.code.textContent;
    const { error } = await this.wishes.ask(what, values);
    this.say(error ?? (what === "cancel" ? text("export.cancelling") : ""), Boolean(error));
  }

  show() {
    const working = this.model.get("working"), files = this.model.get("files");
    for (const button of this.buttons) button.disabled = Boolean(working);
    if (!this.picked.size) this.buttons[0].disabled = true;
    for (const row of this.rows) fill(row, files.findLast((file) => file.kind === row.choice.type && file.done >= 1));
    if (this.cancel.hidden !== !working) this.cancel.disabled = false;
    this.cancel.hidden = !working;
    this.files.show(files, this.model.get("notes"));
    if (!working && this.leaving) {
      this.leaving = false;
      this.say(this.model.get("cancelled") ? text("export.cancelled") : "");
    }
  }

  /** Cancels what is being made, at its next tensor or file. */
  leave() {
    this.leaving = this.cancel.disabled = true;
    this.do("cancel", {}, null);
  }

  destroy() {
    this.endTheme();
    for (const name of LISTENED) this.model.off(`change:${name}`, this.changed);
    this.model.off("change:card", this.cardCame);
    this.model.off("change:account", this.whoCame);
  }
}

/** A row of the table: guesses, until there is a file. */
function fill({ choice, node, size, fits, quality, time }, file) {
  const least = file ? file.fits : choice.fits, about = (words) => (words === MISSING || words.startsWith("<") ? words : `≈ ${words}`);
  setText(size, file?.bytes ? bytes(file.bytes) : about(bytes(choice.bytes)));
  setText(fits, least ? `≤ ${least} GiB` : MISSING);
  setText(quality, measured(file?.quality) ?? text(`quality.${choice.quality}`));
  setText(time, file ? guess(file.seconds) : about(guess(choice.seconds)));
  node.classList.toggle("nbt-made", Boolean(file));
}

/** What was measured of a file, in words; undefined where nothing was. */
function measured(quality) {
  if (!(quality?.perplexity > 0 && quality.reference > 0)) return undefined;
  const change = Math.round(1000 * (quality.perplexity / quality.reference - 1)) / 10;
  const values = { change: `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(1)}`, divergence: quality.divergence < 1e-6 ? "0" : Number(quality.divergence).toPrecision(2) };
  return text(quality.same_tokens ? "quality.measured" : "quality.other_tokens", values);
}

export default panel((model, wishes) => new View(model, wishes));
