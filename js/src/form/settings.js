// Every field of the spec: in groups behind tabs, found by a search in all of them, and the same spec as YAML.

import { el, focusFrom, setAttribute } from "../shared/dom.js";
import { text } from "../shared/texts.js";

const STEPS = ["data", "model"]; // these stand in steps of their own

export class Settings {
  constructor(form, setup) {
    this.form = form;
    this.fields = [...form.fields.all.values()].filter((field) => !STEPS.includes(field.key));
    this.search = el("input", { type: "search", placeholder: text("form.search"), "aria-label": text("form.search"), oninput: () => this.filter() });
    this.tabs = setup.groups.map((name) => el("button", { type: "button", "data-group": name, onclick: () => this.turn(name) }, text(`group.${name}`)));
    this.none = el("p", { class: "nbt-soft", hidden: true }, text("form.none"));
    this.yaml = el("textarea", { spellcheck: "false", rows: 8, "aria-label": text("form.yaml"), oninput: () => form.later(() => form.do("yaml", { text: this.yaml.value })) });
    this.box = el("details", { class: "nbt-settings" }, el("summary", {}, text("form.more")),
      el("div", { class: "nbt-row" }, this.search, el("div", { class: "nbt-tabs", role: "group", "aria-label": text("form.groups") }, ...this.tabs)),
      el("div", { class: "nbt-others" }, ...this.fields.map((field) => field.node)), this.none);
    this.text = el("details", {}, el("summary", {}, text("form.yaml")), this.yaml);
    this.node = el("div", {}, this.box, this.text);
    this.turn(setup.groups[0]);
  }

  turn(group) {
    this.group = group;
    this.search.value = "";
    this.filter();
  }

  /** What is searched for stands in a key, a title or a sentence, in whichever group; else one group is shown. */
  filter() {
    const wanted = this.search.value.trim().toLowerCase();
    for (const tab of this.tabs) setAttribute(tab, "aria-pressed", String(!wanted && tab.dataset.group === this.group));
    for (const field of this.fields) {
      field.node.hidden = wanted ? !`${field.key} ${field.title} ${field.help} ${field.also}`.toLowerCase().includes(wanted) : field.group !== this.group;
    }
    this.none.hidden = this.fields.some((field) => !field.node.hidden);
    for (const key of STEPS) this.form.fields.node(key).classList.toggle("nbt-found", Boolean(wanted) && key.startsWith(wanted));
  }

  /** Opens a field, wherever it stands, and puts the cursor into it. */
  reveal(key) {
    const field = this.form.fields.all.get(key);
    if (!STEPS.includes(key)) {
      this.box.open = true;
      this.turn(field.group);
    }
    field.input.focus();
  }

  show(yaml) {
    if (focusFrom(this.yaml) !== this.yaml) this.yaml.value = yaml;
  }
}
