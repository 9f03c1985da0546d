// The form's fields: one input a key of the spec, wherever it stands; what they say is what was typed.

import { coded, el, freshId, setAttribute, setText } from "../shared/dom.js";
import { text } from "../shared/texts.js";

/** A field's unit, where its title does not say it already ("Limit" holds an s, and says no seconds). */
export const unitOf = ({ title, unit }) => (unit && !title.toLowerCase().split(/\W+/).includes(unit) ? unit : "");

/** Those that stand in the three steps are called as the page speaks, others as the kernel does. */
const titleOf = ({ key, title }) => {
  const named = `field.${key}`, said = text(named);
  return said === named ? title : said;
};

export class Fields {
  /** @param {() => void} changed called when somebody has changed one */
  constructor(setup, changed) {
    this.changed = changed;
    this.all = new Map(setup.fields.map((each) => {
      const field = { ...each, title: titleOf(each) };
      return [field.key, { ...field, ...this.make(field, setup) }];
    }));
  }

  make(field, setup) {
    const id = freshId("field");
    const hint = field.default === null ? text("form.auto") : text("form.default", { value: field.default });
    let input, list = null;
    if (field.kind === "choice" || field.kind === "bool") {
      const options = field.kind === "bool" ? [["true", text("form.yes")], ["false", text("form.no")]] : field.choices.map((name) => [name, name]);
      input = el("select", { id, onchange: this.changed }, el("option", { value: "" }, hint), ...options.map(([value, label]) => el("option", { value }, label)));
    } else {
      const named = { data: setup.data.map((one) => one.name), model: setup.models }[field.kind];
      const offered = named ?? field.offered ?? [];
      list = named || offered.length ? el("datalist", { id: `${id}-list` }, ...offered.map((value) => el("option", { value }))) : null;
      input = el("input", { id, type: "text", list: list?.id, placeholder: named ? field.example : hint, spellcheck: "false", autocomplete: "off", oninput: this.changed });
    }
    const chosen = el("strong");
    const help = el("small", { id: `${id}-help` }, ...coded(field.help), chosen);
    setAttribute(input, "aria-describedby", help.id);
    const label = el("label", { for: id }, field.title, unitOf(field) ? el("span", { class: "nbt-soft" }, ` (${unitOf(field)})`) : null);
    return { input, chosen, node: el("div", { class: "nbt-field", "data-key": field.key }, label, input, help, list) };
  }

  node(key) {
    return this.all.get(key).node;
  }

  get(key) {
    return this.all.get(key).input.value.trim();
  }

  /** What the fields say, as it was typed; the kernel reads it as YAML. */
  typed() {
    const filled = [...this.all].filter(([key]) => this.get(key) !== "").map(([key]) => [key, this.get(key)]);
    const values = Object.fromEntries(filled);
    if (this.how && values.data === this.how.source) values.data = this.how;
    return values;
  }

  put(key, value) {
    const field = this.all.get(key);
    if (!field) return;
    let shown = value;
    if (key === "data") {
      const one = Array.isArray(value) && value.length === 1 ? value[0] : value;
      this.how = typeof one?.source === "string" ? one : null; // how its columns are read stands in menus
      shown = this.how?.source ?? one;
    }
    field.input.value = shown === null || shown === undefined ? "" : typeof shown === "object" ? JSON.stringify(shown) : String(shown);
  }

  fill(values) {
    for (const key of this.all.keys()) this.put(key, values[key]);
  }

  /** Beside each field that was left to the plan: what it chose. */
  showChosen(chosen) {
    for (const [key, field] of this.all) {
      const value = this.get(key) === "" ? chosen?.[key] : undefined;
      setText(field.chosen, value ? ` ${text("form.chosen", { value })}` : "");
    }
  }

  /** Marks the field that an error is about, and no other. */
  blame(key) {
    for (const [each, field] of this.all) setAttribute(field.input, "aria-invalid", String(each === key));
  }
}
