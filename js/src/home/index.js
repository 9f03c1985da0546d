// The home: all runs as a list, and in its place whatever was opened: the form, a monitor, a chat, an export, a comparison.

import { el, setAttribute, setText } from "../shared/dom.js";
import { bytes } from "../shared/format.js";
import { Nested } from "../shared/nested.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import { Line } from "./line.js";
import "./texts.js";

const EVERY = 2000; // milliseconds between two looks, while somebody sees the list
const SHOWN = 20;
const FEW = 8; // of fewer none is searched for
const MOST = 12; // runs on one chart
const CODE = { new: "nbtune.form(globals())", monitor: "run.monitor()", chat: "run.chat()", export: "nbtune.widgets.exporter(run)", losses: "run.losses()", compare: "nbtune.widgets.compare([run, other])" };

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, lines: new Map(), ticked: new Set(), all: false });
    this.build();
    this.endTheme = followTheme(this.root);
    this.handlers = { "change:runs": () => this.show(), "change:found": () => this.show(), "change:opened": () => this.showOpened(), "change:trouble": () => this.say(model.get("trouble"), true) };
    for (const [name, handler] of Object.entries(this.handlers)) model.on(name, handler);
    this.sight = new IntersectionObserver((entries) => { this.visible = entries.at(-1).isIntersecting; });
    this.sight.observe(this.root);
    this.ticking = setInterval(() => this.look(), EVERY);
    this.show();
    this.showOpened();
  }

  build() {
    const button = (key, onclick, more = {}) => el("button", { type: "button", class: "nbt-btn", "data-do": key, onclick, ...more }, text(`home.${key}`));
    this.fresh = button("new", () => this.open("new"), { class: "nbt-btn nbt-main" });
    this.compare = button("compare", () => this.open("compare", { keys: this.chosen() }));
    this.remove = button("delete", () => this.ask());
    this.count = el("span", { class: "nbt-soft" });
    this.search = el("input", { type: "search", "aria-label": text("home.search"), placeholder: text("home.search"), spellcheck: "false", oninput: () => this.show() });
    this.sure = el("p", { class: "nbt-text" });
    this.asked = el("div", { class: "nbt-box", role: "group", "aria-label": text("home.delete"), hidden: true }, this.sure,
      el("div", { class: "nbt-row" }, button("delete", () => this.go(), { "data-do": "sure" }), button("keep", () => this.leave())));
    this.asked.addEventListener("keydown", (event) => { if (event.key === "Escape") { event.stopPropagation(); this.leave(); } });
    this.none = el("p", { class: "nbt-soft" });
    this.waiting = el("div", { class: "nbt-skeleton" });
    // roles are said, because a table that is laid out as blocks loses its own
    const head = ["run", "state", "loss", "size"].map((key) => el("th", { scope: "col", role: "columnheader", class: key === "size" ? "nbt-num" : null }, text(`home.${key}`)));
    this.body = el("tbody", { role: "rowgroup" });
    this.table = el("div", { class: "nbt-homelist nbt-wide" }, el("table", { role: "table", "aria-label": text("home") },
      el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, el("td", { role: "cell" }), ...head, el("th", { scope: "col", role: "columnheader" }, el("span", { class: "nbt-sr" }, text("home.acts"))))), this.body));
    this.more = el("button", { type: "button", class: "nbt-btn", onclick: () => { this.all = true; this.show(); } });
    this.older = el("p", { class: "nbt-soft", hidden: true });
    this.said = el("div", { class: "nbt-text", role: "status" });
    this.list = el("div", { class: "nbt-homeside" },
      el("div", { class: "nbt-row" }, this.fresh, this.compare, this.remove, this.count, this.search), this.asked, this.none, this.waiting, this.table, this.more, this.older);
    this.host = el("div");
    this.nested = new Nested(this.model, this.host);
    this.back = button("back", () => this.close());
    this.back.prepend(el("span", { "aria-hidden": "true" }, "← "));
    this.title = el("h3", { class: "nbt-text", dir: "auto" });
    this.place = el("div", { class: "nbt-homeside", role: "group", hidden: true }, el("div", { class: "nbt-row" }, this.back, this.title), this.host);
    this.root = el("section", { class: "nbt nbt-home", role: "region", "aria-label": text("home"), "data-lm-suppress-shortcuts": "true" }, this.list, this.place, this.said);
  }

  async do(what, values = {}) {
    const { error } = await this.wishes.ask(what, values);
    this.say(error ?? "", Boolean(error));
    return !error;
  }

  say(words, bad = false) {
    setText(this.said, words);
    this.said.classList.toggle("nbt-bad", bad);
  }

  /** Asks for news; without a kernel nobody answers, and nobody is asked again. */
  async look() {
    if (!this.visible || document.hidden || this.looking || this.model.get("opened")?.model || !this.root.isConnected) return;
    this.looking = true;
    const { error } = await this.wishes.ask("look");
    this.looking = false;
    if (!error) return;
    clearInterval(this.ticking);
    this.say(text("home.stale"), true);
  }

  async open(what, values = {}, wish = what) {
    this.focus = true;
    this.say(text("home.opening"));
    const { error } = await this.wishes.ask(wish, values);
    if (error) this.say(error, true);
  }

  async close() {
    this.focus = true;
    await this.do("close");
  }

  /** The ticked runs that are still there, the newest first. */
  chosen() {
    return this.model.get("runs").map(({ key }) => key).filter((key) => this.ticked.has(key));
  }

  tick(key, on) {
    if (on) this.ticked.add(key);
    else this.ticked.delete(key);
    this.showTicked();
  }

  showTicked() {
    const chosen = this.chosen(), runs = this.model.get("runs");
    const drawn = runs.filter(({ key, step }) => this.ticked.has(key) && step > 0).length;
    this.compare.disabled = chosen.length < 2 || drawn < chosen.length || chosen.length > MOST;
    this.remove.disabled = !chosen.length;
    setText(this.count, chosen.length ? text("home.ticked", { n: chosen.length }) : text("home.hint"));
    if (!chosen.length) this.asked.hidden = true;
  }

  ask() {
    const chosen = this.model.get("runs").filter(({ key }) => this.ticked.has(key));
    const size = bytes(chosen.reduce((sum, run) => sum + (run.bytes ?? 0), 0));
    setText(this.sure, chosen.length === 1 ? text("home.sure_one", { name: chosen[0].name, size }) : text("home.sure", { n: chosen.length, size }));
    this.asked.hidden = false;
    this.asked.querySelector("[data-do=keep]").focus();
  }

  leave() {
    this.asked.hidden = true;
    this.remove.focus();
  }

  async go() {
    this.asked.hidden = true;
    await this.do("delete", { keys: this.chosen() });
    this.fresh.focus();
  }

  show() {
    const runs = this.model.get("runs"), found = this.model.get("found");
    const needle = this.search.value.trim().toLowerCase();
    const matching = runs.filter(({ name, id, model }) => !needle || [name, id, model].some((each) => each?.toLowerCase().includes(needle)));
    const shown = this.all || needle ? matching : matching.slice(0, SHOWN);
    this.ticked = new Set(this.chosen());
    for (const [key, line] of this.lines) if (!shown.some((run) => run.key === key)) { line.node.remove(); this.lines.delete(key); }
    const namesakes = new Map();
    for (const { name } of runs) namesakes.set(name, (namesakes.get(name) ?? 0) + 1);
    shown.forEach((run, k) => {
      const line = this.lines.get(run.key) ?? this.line(run.key);
      line.update(run, namesakes.get(run.name) > 1);
      if (this.body.children[k] !== line.node) this.body.insertBefore(line.node, this.body.children[k] ?? null);
      line.tick.checked = this.ticked.has(run.key);
    });
    const lost = runs[0]?.state === "interrupted" && !runs[0].never?.includes("resume"); // then that is the next thing to do
    this.lines.get(runs[0]?.key)?.resume.classList.toggle("nbt-main", lost);
    this.fresh.classList.toggle("nbt-main", !lost);
    this.search.hidden = runs.length <= FEW;
    this.table.hidden = !shown.length;
    this.waiting.hidden = found >= 0 || runs.length > 0;
    for (const node of [this.compare, this.remove, this.count]) node.hidden = !runs.length;
    this.none.hidden = found < 0 || shown.length > 0;
    setText(this.none, text(runs.length ? "home.no_match" : "home.none"));
    this.more.hidden = shown.length >= matching.length;
    setText(this.more, text("home.all", { n: matching.length }));
    this.older.hidden = found <= runs.length;
    setText(this.older, text("home.older", { n: found - runs.length }));
    setAttribute(this.root, "data-runs", String(found));
    this.showTicked();
  }

  line(key) {
    const made = new Line({
      tick: (on) => this.tick(key, on),
      open: (what) => this.open(what, { key, what }, "open"),
      resume: () => this.open("monitor", { key }, "resume"),
    });
    this.lines.set(key, made);
    return made;
  }

  async showOpened() {
    const { what, name, model: id } = this.model.get("opened") ?? {};
    this.list.hidden = Boolean(id);
    this.place.hidden = !id;
    if (id) setAttribute(this.place, "aria-label", [what === "new" ? text("home.new") : name, text("home")].filter(Boolean)[0]);
    if (id) setText(this.title, what === "new" ? text("home.new") : what === "monitor" ? "" : [text(what), name].filter(Boolean).join(" · "));
    const shown = await this.nested.show(id);
    if (shown === false) setText(this.host, text("home.no_view", { code: CODE[what] }));
    if (shown !== undefined || !id) this.say("");
    if (this.focus) {
      this.focus = false;
      (id ? this.back : this.fresh).focus({ preventScroll: true });
      this.root.scrollIntoView({ block: "nearest" });
    }
  }

  destroy() {
    clearInterval(this.ticking);
    this.sight.disconnect();
    this.endTheme();
    this.nested.drop();
    for (const [name, handler] of Object.entries(this.handlers)) this.model.off(name, handler);
  }
}

export default panel((model, wishes) => new View(model, wishes));
