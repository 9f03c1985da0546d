// The first step: which rows. A file that is dropped or chosen, a variable, or an example; then how they are read.

import { el, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { columnPicker } from "../shared/reading.js";
import { text } from "../shared/texts.js";

const OFFERED = 6;

export class DataStep {
  constructor(form, setup) {
    this.form = form;
    const file = el("input", { type: "file", class: "nbt-sr", tabindex: -1, "aria-hidden": "true", onchange: () => this.upload(file.files[0]) });
    this.pick = el("button", { type: "button", class: "nbt-btn", onclick: () => file.click() }, text("form.upload"));
    const offers = setup.data.slice(0, OFFERED).map(({ name, kind }) => el("button", { type: "button", class: "nbt-btn", title: text(`form.${kind}`), onclick: () => this.choose(name) }, name));
    this.about = el("p", { class: "nbt-soft", role: "status" });
    this.columns = el("div", { class: "nbt-fields" });
    this.rows = el("div", { class: "nbt-shown" });
    this.legend = el("small", {}, text("form.legend"));
    this.findings = el("ul", { class: "nbt-findings" });
    this.node = el("div", {},
      el("div", { class: "nbt-row nbt-drop" }, this.pick, el("span", { class: "nbt-soft" }, text("form.drop")), file),
      form.fields.node("data"), el("div", { class: "nbt-row" }, ...offers),
      form.slots.data, this.about, this.columns, this.rows, this.legend, this.findings);
  }

  choose(name) {
    this.form.fields.put("data", name);
    this.form.check();
  }

  async upload(file) {
    if (!file) return;
    setText(this.about, text("form.sending", { name: file.name }));
    const { error, value } = await this.form.wishes.ask("upload", { name: file.name }, [await file.arrayBuffer()]);
    setText(this.about, error ?? "");
    this.about.classList.toggle("nbt-bad", Boolean(error));
    if (!error) this.choose(value);
  }

  /** @param {object} reading what the kernel has found out about the rows */
  show(reading) {
    const { state, sources = [], shown = [], findings = [] } = reading;
    const fresh = state === "working" && !shown.length;
    this.legend.hidden = !shown.some((row) => row.stretches);
    this.about.classList.remove("nbt-bad");
    setText(this.about, state === "known" ? this.words(reading) : fresh ? text("form.reading") : "");
    this.columns.replaceChildren(...sources.flatMap((source, k) => this.source(source, k, reading)));
    this.rows.replaceChildren(...(fresh ? [1, 2, 3].map(() => el("div", { class: "nbt-skeleton" })) : shown.map(row)));
    // what columns there are is asked above: that is no news
    const news = sources.some((source) => source.asks) ? [] : findings;
    this.findings.replaceChildren(...news.map(({ level, text: said, fix }) => el("li", { "data-level": level, class: "nbt-text", dir: "auto" }, said, fix ? el("div", { class: "nbt-soft" }, fix) : null)));
  }

  words({ rows, tokens, trained_tokens: trained }) {
    const share = tokens ? text("form.share", { share: `${Math.round((100 * trained) / tokens)} %` }) : "";
    return [text(rows === 1 ? "form.row.one" : "form.rows", { n: number(rows) }), tokens ? text("form.tokens", { n: number(tokens) }) : "", share].filter(Boolean).join(" · ");
  }

  source(source, k, { sources, formats }) {
    const read = (format, columns) => this.form.readColumns(k, format, columns);
    const { format, roles } = columnPicker(source, formats, read);
    const guess = Object.entries(source.proposal ?? {});
    const head = sources.length > 1 ? [el("strong", {}, source.name)] : [];
    if (!source.asks) return [...head, format, ...roles];
    const ask = el("p", {}, text(source.mapping.completion === undefined ? "form.which" : "form.which.pair"));
    const take = guess.length ? el("button", { type: "button", class: "nbt-btn nbt-main", "data-do": "take", onclick: () => read(null, source.proposal) },
      text("form.take", { columns: guess.map(([role, column]) => `${column} → ${role}`).join(", ") })) : null;
    return [...head, ask, ...(take ? [el("div", { style: "flex:1 0 100%" }, take)] : []), ...roles, format];
  }
}

/** A row with what of it is trained; one that cannot be read yet shows its columns. */
function row({ index, stretches, raw }) {
  const cells = raw?.map(([name, value]) => el("tr", {}, el("th", { scope: "row" }, name), el("td", { class: "nbt-text", dir: "auto" }, value)));
  const flags = (bits) => (bits & 1 ? "nbt-tok nbt-on" : bits & 4 ? "nbt-soft" : null);
  return el("div", { class: "nbt-example", role: "group", tabindex: 0, "aria-label": text("form.row", { n: index }), dir: "auto" },
    ...(cells ? [el("table", {}, ...cells)] : (stretches ?? []).map(([said, bits]) => el("span", { class: flags(bits) }, said))));
}
