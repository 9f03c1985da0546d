// The export panel: what a run can become, each with its size, what it fits in, and the line of code that makes it.

import { el, setText } from "../shared/dom.js";
import { bytes, guess, MISSING } from "../shared/format.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";
import "../shared/base.css";
import "./export.css";

const MAKES = ["adapter", "merged", "ollama"];

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, picked: new Set(["q8_0"]) });
    this.build();
    this.endTheme = followTheme(this.root);
    this.changed = () => this.show();
    for (const name of ["files", "notes", "working"]) model.on(`change:${name}`, this.changed);
    this.show();
  }

  build() {
    const button = (label, onclick) => el("button", { type: "button", class: "nbt-btn", onclick }, label);
    this.buttons = [
      button(text("export.make"), () => this.do("gguf", { types: [...this.picked] }, `run.export.gguf(${[...this.picked].map((type) => JSON.stringify(type)).join(", ")})`)),
      ...MAKES.map((what) => button(text(`export.make.${what}`), () => this.do("make", { what }, `run.export.${what}()`))),
    ];
    this.buttons[0].classList.add("nbt-main");
    this.list = el("ul", { class: "nbt-files" });
    this.said = el("span", { class: "nbt-text", role: "status" });
    this.code = el("code");
    this.codeLine = el("div", { class: "nbt-row nbt-soft", hidden: true }, text("code"), this.code);
    this.root = el("section", { class: "nbt nbt-exportpanel", role: "region", "aria-label": text("export.of", { name: this.model.get("run_name") }), "data-lm-suppress-shortcuts": "true" },
      el("h3", { class: "nbt-text" }, text("export.of", { name: this.model.get("run_name") })),
      el("div", { class: "nbt-scroll", tabindex: 0 }, this.types()),
      el("div", { class: "nbt-row" }, ...this.buttons),
      this.pushForm(), this.said, this.codeLine, this.list);
  }

  types() {
    const head = ["export.type", "export.size", "export.fits", "export.quality", "export.time"].map((key) => el("th", { scope: "col" }, text(key)));
    const rows = this.model.get("choices").map((choice) => {
      const box = el("input", { type: "checkbox", checked: this.picked.has(choice.type), onchange: () => this.pick(choice.type, box.checked) });
      return el("tr", {}, el("td", {}, el("label", {}, box, choice.type)), el("td", {}, choice.bytes ? bytes(choice.bytes) : MISSING),
        el("td", { style: "white-space:nowrap" }, choice.fits ? `${choice.fits} GiB` : MISSING), el("td", {}, text(`quality.${choice.quality}`)), el("td", {}, guess(choice.seconds)));
    });
    return el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...rows));
  }

  pick(type, on) {
    if (on) this.picked.add(type);
    else this.picked.delete(type);
    this.show();
  }

  pushForm() {
    const repo = el("input", { type: "text", placeholder: text("push.example"), spellcheck: "false", size: 22 });
    const what = el("select", {}, ...["adapter", "merged", "gguf"].map((value) => el("option", { value }, value)));
    const secret = el("input", { type: "checkbox", checked: true });
    const submit = (event) => {
      event.preventDefault();
      const name = repo.value.trim();
      if (!/^[\w.-]+\/[\w.-]+$/.test(name)) return setText(this.said, text("push.bad"));
      const more = [what.value === "adapter" ? "" : `, what=${JSON.stringify(what.value)}`, secret.checked ? "" : ", private=False"].join("");
      return this.do("push", { repo: name, what: what.value, private: secret.checked }, `run.push_to_hub(${JSON.stringify(name)}${more})`);
    };
    const go = el("button", { type: "submit", class: "nbt-btn" }, text("push"));
    this.buttons.push(go);
    return el("form", { class: "nbt-box", onsubmit: submit }, el("h4", {}, text("export.push")),
      el("div", { class: "nbt-row" }, el("label", {}, text("push.repo"), repo), el("label", {}, text("export.what"), what), el("label", {}, secret, text("push.private")), go));
  }

  async do(what, values, code) {
    setText(this.code, code);
    this.codeLine.hidden = false;
    const { error } = await this.wishes.ask(what, values);
    setText(this.said, error ?? "");
    this.said.classList.toggle("nbt-bad", Boolean(error));
  }

  show() {
    const working = this.model.get("working");
    for (const button of this.buttons) button.disabled = Boolean(working);
    if (!this.picked.size) this.buttons[0].disabled = true;
    const notes = this.model.get("notes").map((note) => [note.time, el("li", { "data-level": "error", class: "nbt-text" }, note.message,
      note.fix ? el("div", { class: "nbt-soft" }, text("note.fix", { fix: note.fix })) : null)]);
    const files = this.model.get("files").map((file) => [file.time, el("li", { class: "nbt-text" },
      file.done < 1 ? text("export.making", { kind: file.kind, done: Math.round(100 * file.done) }) : [file.kind, file.path, file.bytes ? bytes(file.bytes) : "", file.detail].filter(Boolean).join(" · "))]);
    this.list.replaceChildren(...[...notes, ...files].sort((a, b) => b[0] - a[0]).map(([, node]) => node));
  }

  destroy() {
    this.endTheme();
    for (const name of ["files", "notes", "working"]) this.model.off(`change:${name}`, this.changed);
  }
}

export default panel((model, wishes) => new View(model, wishes));
