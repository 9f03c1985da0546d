// The loss explorer: rows by loss; a row is opened in the inspector, which is a panel of its own, shown below.

import { el, focusFrom, setAttribute, setText } from "../shared/dom.js";
import { MISSING, number } from "../shared/format.js";
import { Nested } from "../shared/nested.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";

const ORDERS = ["loss", "base", "learnt", "tokens"];
const WATCHED = { status: "showStatus", view: "showRows", changes: "showChanges", opened: "showOpened", going: "showGoing" };

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes });
    this.build();
    this.endTheme = followTheme(this.root);
    this.watching = Object.entries(WATCHED).map(([name, show]) => [`change:${name}`, () => this[show]()]);
    for (const [name, call] of this.watching) model.on(name, call);
    for (const show of Object.values(WATCHED)) this[show]();
  }

  build() {
    const button = (key, what) => el("button", { type: "button", class: "nbt-btn", onclick: () => this.do(what) }, text(key));
    this.name = el("h3");
    this.progress = el("progress", { "aria-label": text("losses.progress"), max: 1, value: 0 });
    this.said = el("span", { class: "nbt-soft nbt-text", role: "status" });
    this.failed = el("div", { class: "nbt-bad nbt-text", role: "alert" });
    this.stop = button("losses.stop", "stop");
    this.start = button("losses.start", "start");
    this.again = button("losses.again", "again");
    this.by = el("select", { onchange: () => this.sort() }, ...ORDERS.map((key) => el("option", { value: key }, text(`losses.${key}`))));
    this.order = el("select", { onchange: () => this.sort() }, ...["highest", "lowest"].map((key) => el("option", { value: key }, text(`losses.${key}`))));
    // roles are said, because a table that is laid out as blocks loses its own
    this.head = el("thead", { role: "rowgroup" });
    this.body = el("tbody", { role: "rowgroup" });
    this.none = el("p", { class: "nbt-soft" }, text("losses.none"));
    this.more = el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("more") }, text("losses.more"));
    this.code = el("code", { dir: "auto" });
    this.line = el("div", { class: "nbt-code nbt-soft", role: "status", hidden: true }, text("losses.code"), " ", this.code);
    this.inspector = new Nested(this.model, el("div", { class: "nbt-inspect" }));
    this.changed = el("span", { role: "status" });
    this.undo = el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("undo") }, text("losses.undo"));
    this.steps = el("input", { type: "number", min: 1, step: 1 });
    this.show = el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("code", this.wanted) }, text("losses.show"));
    this.go = el("button", { type: "button", class: "nbt-btn nbt-main", onclick: () => this.do("go_on", this.wanted) }, text("losses.go"));
    this.began = el("div", { class: "nbt-text", role: "status" });
    this.monitor = new Nested(this.model, el("div", { class: "nbt-inspect" }));
    this.root = el("section", { class: "nbt nbt-losses", role: "region", "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "nbt-row" }, this.name),
      el("div", { class: "nbt-row" }, this.progress, this.said, this.stop, this.start, this.again),
      this.failed,
      el("div", { class: "nbt-row" }, el("label", {}, text("losses.by"), this.by), el("label", {}, text("losses.order"), this.order)),
      this.none,
      el("div", { class: "nbt-losstable nbt-wide", tabindex: 0, role: "group", "aria-label": text("losses.rows") }, el("table", { role: "table" }, this.head, this.body)),
      el("div", { class: "nbt-row" }, this.more),
      el("div", { class: "nbt-row" }, this.changed, this.undo, el("label", {}, text("losses.steps"), this.steps), this.go, this.show),
      this.line, this.began, this.inspector.host, this.monitor.host);
  }

  /** What is asked for besides the rows: a number of steps, or as many as before. */
  get wanted() {
    const steps = Number(this.steps.value);
    return { steps: Number.isInteger(steps) && steps > 0 ? steps : null };
  }

  async do(what, values = {}) {
    const answer = await this.wishes.ask(what, values);
    setText(this.failed, answer.error ?? this.model.get("status").error ?? "");
    if (typeof answer.value === "string") setText(this.code, answer.value);
    this.line.hidden = !this.code.textContent;
    return answer;
  }

  sort() {
    this.do("sort", { by: this.by.value, lowest: this.order.value === "lowest" });
  }

  showStatus() {
    const { name, busy, done, total, in_all: all, steps, live, error } = this.model.get("status");
    setText(this.name, text("losses", { name }));
    setAttribute(this.root, "aria-label", this.name.textContent);
    this.progress.hidden = !busy;
    this.progress.max = total || 1;
    this.progress.value = done;
    const [first, last] = steps;
    const when = first === undefined ? "" : first === last ? text("losses.at", { step: number(last) }) : text("losses.between", { first: number(first), last: number(last) });
    const some = all > total ? ` ${text("losses.some", { n: number(all) })}` : "";
    const count = total ? text("losses.measured", { done: number(done), total: number(total) }) + some : busy ? text("losses.reading") : "";
    setText(this.said, [count, when].filter(Boolean).join(" · "));
    setText(this.failed, error);
    this.stop.hidden = !busy;
    this.start.hidden = busy || done >= total;
    this.again.hidden = busy || !done || !live;
    setAttribute(this.root, "data-busy", String(busy));
  }

  showRows() {
    const { by, lowest, rows, more } = this.model.get("view");
    this.by.value = by;
    this.order.value = lowest ? "lowest" : "highest";
    this.none.hidden = rows.length > 0;
    this.more.hidden = !more;
    const based = rows.some((row) => row.base !== null);
    for (const option of this.by.options) option.hidden = option.disabled = !based && ["base", "learnt"].includes(option.value);
    const columns = ["loss", ...(based ? ["base", "learnt"] : []), "tokens"];
    const sorted = (key) => (key === by ? (lowest ? "ascending" : "descending") : null);
    this.head.replaceChildren(el("tr", { role: "row" },
      ...columns.map((key) => el("th", { scope: "col", role: "columnheader", class: "nbt-num", "aria-sort": sorted(key) }, text(`losses.${key}`))),
      el("th", { scope: "col", role: "columnheader" }, text("losses.row")), el("th", { scope: "col", role: "columnheader", class: "nbt-num" }, text("losses.acts"))));
    const focused = focusFrom(this.body), row = focused?.closest?.("tr[data-mark]");
    const back = row && this.body.contains(row) ? [row.dataset.mark, focused.className] : null; // it stays where it was
    this.body.replaceChildren(...rows.map((each) => this.row(each, columns)));
    this.markOpened();
    this.showChanges();
    if (back) [...(this.find(back[0])?.querySelectorAll("button") ?? [])].find((node) => node.className === back[1])?.focus();
  }

  find(mark) {
    return [...this.body.children].find((line) => line.dataset.mark === mark);
  }

  row(row, columns) {
    const value = (key) => (row[key] === null ? MISSING : key === "tokens" ? number(row.tokens) : row[key].toFixed(3));
    const place = [text("losses.place", { source: row.source, row: row.row }), row.held ? text("losses.held") : ""].filter(Boolean).join(" · ");
    const label = text("losses.open", { row: row.row });
    return el("tr", { role: "row", "data-mark": row.mark, "data-index": row.index, "data-row": row.row },
      ...columns.map((key) => el("td", { role: "cell", class: "nbt-num", "data-label": text(`losses.${key}`) }, value(key))),
      el("th", { scope: "row", role: "rowheader" }, el("button", { type: "button", class: "nbt-open", "aria-description": label, onclick: () => this.do("open", { index: row.index }) },
        el("span", { class: "nbt-soft", dir: "auto" }, row.asked), el("span", { class: "nbt-rowsaid", dir: "auto" }, row.said), el("span", { class: "nbt-soft", dir: "auto" }, place))),
      el("td", { role: "cell", class: "nbt-acts" }, el("span", { class: "nbt-wanted" }), ...["drop", "double"].map((act) =>
        el("button", { type: "button", class: "nbt-btn", "data-act": act, onclick: () => this.act(row.mark, act) }))));
  }

  /** Leaves a row out (or takes it in again), or lets it count twice as often as it does. */
  act(mark, act) {
    const now = this.model.get("changes").weights[mark] ?? 1;
    this.do("weight", { mark, weight: act === "drop" ? (now === 0 ? 1 : 0) : now === 0 ? 2 : 2 * now });
  }

  /** What is wanted of each row that is shown, and of all. */
  showChanges() {
    const { weights, dropped, weighted, undo, steps } = this.model.get("changes");
    for (const line of this.body.children) {
      const weight = weights[line.dataset.mark] ?? 1;
      const row = line.dataset.row;
      setText(line.querySelector(".nbt-wanted"), weight === 1 ? "" : weight === 0 ? text("losses.dropped") : `× ${number(weight)}`);
      line.toggleAttribute("data-out", weight === 0);
      for (const button of line.querySelectorAll("[data-act]")) {
        const key = button.dataset.act === "double" ? "double" : weight === 0 ? "keep" : "drop";
        setText(button, text(`losses.${key}`));
        setAttribute(button, "aria-label", text(`losses.${key}_row`, { row }));
        button.disabled = key === "double" && weight > 400;
      }
    }
    setText(this.changed, dropped + weighted ? text("losses.changed", { dropped: number(dropped), weighted: number(weighted) }) : text("losses.unchanged"));
    setText(this.go, text(dropped + weighted ? "losses.go" : "losses.on"));
    this.undo.disabled = !undo;
    setAttribute(this.steps, "placeholder", String(steps || ""));
  }

  showGoing() {
    const { state, name, id, error, model } = this.model.get("going");
    this.go.disabled = state === "starting";
    setText(this.began, state === "starting" ? text("losses.starting") : state === "begun" ? text("losses.begun", { name, id }) : error ?? "");
    this.began.classList.toggle("nbt-bad", state === "failed");
    this.place(this.monitor, model);
  }

  markOpened() {
    const { index } = this.model.get("opened");
    for (const line of this.body.children) line.toggleAttribute("data-open", line.dataset.index === String(index));
  }

  showOpened() {
    this.markOpened();
    const close = () => el("div", {}, el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("close") }, text("losses.close")));
    this.place(this.inspector, this.model.get("opened").model, close);
  }

  /** Another panel in this one. */
  async place(nested, id, above) {
    const shown = await nested.show(id, above);
    if (shown) nested.host.scrollIntoView?.({ block: "nearest" });
    if (shown === false) setText(nested.host, text("losses.no_view"));
  }

  destroy() {
    this.endTheme();
    for (const [name, call] of this.watching) this.model.off(name, call);
    for (const nested of [this.inspector, this.monitor]) nested.drop();
  }
}

export default panel((model, wishes) => new View(model, wishes));
