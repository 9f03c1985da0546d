// The inspector: how rows are read, and which of their tokens are trained.

import { el, focusFrom, setAttribute, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { panel } from "../shared/panel.js";
import { choice, columnPicker } from "../shared/reading.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";
import { histogram } from "./histogram.js";
import { TokenPage, visible } from "./tokens.js";

const RULES = ["answers", "last_answer", "all"];
const VIEWS = ["raw", "rendered", "tokens"];
const JUDGING = ["judges", "judge"];

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, view: "tokens" });
    this.build();
    this.endTheme = followTheme(this.root);
    this.onSummary = () => this.showSummary();
    this.onRow = () => this.showRow();
    model.on("change:summary", this.onSummary);
    model.on("change:row", this.onRow);
    this.onJudges = () => this.showJudges();
    for (const name of JUDGING) model.on(`change:${name}`, this.onJudges);
    this.showSummary();
    this.showRow();
    this.showJudges();
  }

  build() {
    const button = (label, onclick, mark) => el("button", { type: "button", class: "nbt-btn", onclick, "aria-label": text(label), title: text(label) }, mark);
    this.name = el("span", { class: "nbt-name", dir: "auto" });
    this.counts = el("span", { class: "nbt-soft" });
    this.fields = el("div", { class: "nbt-fields" });
    this.bars = el("div");
    this.findings = el("ul", { class: "nbt-findings" });
    this.said = el("span", { class: "nbt-soft" });
    this.index = el("input", { type: "number", min: 0, step: 1, onchange: () => this.go(Number(this.index.value)) });
    this.of = el("span", { class: "nbt-soft" });
    this.search = el("input", { type: "search", placeholder: text("inspect.search"), "aria-label": text("inspect.search"), onkeydown: (event) => {
      if (event.key === "Enter") this.find(event.shiftKey);
    } });
    this.tabs = VIEWS.map((name) => el("button", { type: "button", "data-view": name, onclick: () => this.turn(name) }, text(`inspect.${name}`)));
    this.plain = el("div", { class: "nbt-page nbt-plainpage", tabindex: 0, dir: "auto" });
    this.plain.addEventListener("mouseup", () => this.choose());
    this.plain.addEventListener("keyup", () => this.choose());
    this.spans = ["train", "leave"].map((key) => el("button", { type: "button", class: "nbt-btn", onclick: () => this.span(key === "train") }, text(`inspect.${key}`)));
    this.undo = el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("undo", {}, text("inspect.working")) }, text("inspect.undo"));
    this.rules = el("ul", { class: "nbt-rules" });
    this.judge = el("select", { onchange: () => this.do("judge", { key: this.judge.value }), onpointerenter: () => this.do("look", {}), onfocus: () => this.do("look", {}) });
    this.judging = el("label", {}, text("inspect.judge"), this.judge);
    this.tokens = new TokenPage(() => this.showSpan());
    this.place = el("span", { class: "nbt-soft nbt-text" });
    this.yaml = el("code");
    const file = el("input", { type: "file", class: "nbt-sr", tabindex: -1, "aria-label": text("inspect.upload"), onchange: () => this.upload(file.files[0]) });
    this.root = el("section", { class: "nbt nbt-inspector", role: "region", "data-lm-suppress-shortcuts": "true" },
      el("div", { class: "nbt-row" }, this.name, this.counts,
        el("button", { type: "button", class: "nbt-btn", onclick: () => file.click() }, text("inspect.upload")), file),
      el("div", { class: "nbt-reading" }, this.fields, this.bars),
      this.findings,
      el("div", { class: "nbt-row" },
        button("inspect.previous", () => this.go(this.row.index - 1), "◀"),
        el("label", {}, text("inspect.row"), this.index), this.of,
        button("inspect.next", () => this.go(this.row.index + 1), "▶"),
        this.search,
        el("div", { class: "nbt-tabs", role: "group", "aria-label": text("inspect.view") }, ...this.tabs),
        el("span", { role: "status" }, this.said)),
      el("div", {}, this.place),
      this.plain, this.tokens.node,
      el("div", { class: "nbt-row" }, ...this.spans, this.undo, this.judging),
      this.rules,
      el("div", { class: "nbt-row nbt-soft" }, text("inspect.yaml"), this.yaml));
    this.root.addEventListener("dragover", (event) => event.preventDefault());
    this.root.addEventListener("drop", (event) => {
      if (!event.dataTransfer.files.length) return;
      event.preventDefault();
      this.upload(event.dataTransfer.files[0]);
    });
  }

  async upload(file) {
    if (!file) return;
    setText(this.said, text("inspect.working"));
    const { error } = await this.wishes.ask("upload", { name: file.name }, [await file.arrayBuffer()]);
    if (error) setText(this.said, error);
  }

  get row() {
    return this.model.get("row");
  }

  async do(what, values, busy = "") {
    setText(this.said, busy);
    const answer = await this.wishes.ask(what, values);
    if (answer.error) setText(this.said, answer.error);
    else if (!busy) setText(this.said, "");
    return answer.value;
  }

  go(index) {
    if (Number.isInteger(index) && index >= 0 && index < this.model.get("summary").rows) this.do("row", { index });
    else this.index.value = this.row.index ?? 0;
  }

  async find(back) {
    const wanted = this.search.value;
    if (wanted && (await this.do("search", { text: wanted, back })) === false) setText(this.said, text("inspect.none"));
  }

  turn(view) {
    this.view = view;
    this.chosen = "";
    this.showRow();
  }

  /** What is selected in the rendered text. */
  choose() {
    const selection = getSelection();
    const inside = this.view === "rendered" && selection.rangeCount && this.plain.contains(selection.getRangeAt(0).commonAncestorContainer);
    this.chosen = inside ? selection.toString() : "";
    this.showSpan();
  }

  /** A rule for what is selected. */
  span(train) {
    const span = this.tokens.span;
    if (this.view === "tokens" && span) this.do("span", { first: span[0], last: span[1], train }, text("inspect.working"));
    else if (this.view === "rendered" && this.chosen) this.do("text", { text: this.chosen, train }, text("inspect.working"));
  }

  showSpan() {
    const any = this.view === "tokens" ? this.tokens.span : this.view === "rendered" && this.chosen;
    for (const button of this.spans) button.disabled = !any;
  }

  showRules(rules = []) {
    const back = this.rules.contains(focusFrom(this.rules));
    this.rules.replaceChildren(...rules.map((rule, k) => el("li", {},
      el("span", {}, text(rule.train ? "inspect.rule_train" : "inspect.rule_leave")), " ", el("code", { dir: "auto" }, visible(rule.match).replaceAll("\n", "")), " ",
      el("span", { class: "nbt-soft" }, text("inspect.rule_rows", { n: number(rule.rows), of: number(rule.of) })), " ",
      el("button", { type: "button", class: "nbt-btn", "aria-label": text("inspect.rule_drop", { text: rule.match }), onclick: () => this.do("drop", { rule: k }, text("inspect.working")) }, "×"))));
    if (back) (this.rules.querySelector("button") ?? this.tokens.page).focus();
  }

  showJudges() {
    const [judges, now] = JUDGING.map((name) => this.model.get(name));
    this.judging.hidden = !judges?.length;
    const offered = JSON.stringify(judges);
    if (offered !== this.offered) {
      this.offered = offered;
      const named = ({ name, base }) => (base ? text("inspect.base_of", { name }) : name);
      this.judge.replaceChildren(el("option", { value: "" }, text("inspect.no_judge")), ...(judges ?? []).map((each) => el("option", { value: each.key }, named(each))));
    }
    this.judge.value = now ?? "";
  }

  showSummary() {
    const summary = this.model.get("summary");
    const sources = summary.sources ?? [];
    setText(this.said, "");
    setText(this.name, sources.map((source) => source.name).join(", "));
    setAttribute(this.root, "aria-label", text("inspect", { name: this.name.textContent }));
    const share = summary.tokens ? `${((100 * summary.trained_tokens) / summary.tokens).toFixed(1)} %` : "–";
    const counted = summary.examined < summary.rows ? ` (${text("inspect.examined", { n: number(summary.examined) })})` : "";
    setText(this.counts, text("inspect.counts", {
      rows: number(summary.rows), tokens: number(summary.tokens), share, longest: number(summary.longest),
    }) + counted);
    this.fields.replaceChildren(...sources.flatMap((source, k) => this.sourceFields(summary, source, k)), this.rule(summary));
    this.bars.replaceChildren(...histogram(summary));
    this.findings.replaceChildren(...summary.findings.map((finding) => el("li", { "data-level": finding.level, class: "nbt-text", dir: "auto" },
      finding.text, finding.fix ? el("div", { class: "nbt-soft" }, text("note.fix", { fix: finding.fix })) : null)));
    setText(this.yaml, summary.yaml);
    this.showRules(summary.rules);
    this.undo.disabled = !summary.undo;
    setText(this.of, text("inspect.of", { n: number(Math.max(0, summary.rows - 1)) }));
    this.index.max = summary.rows - 1;
  }

  sourceFields(summary, source, k) {
    const { format, roles } = columnPicker(source, summary.formats, (name, columns) => this.read(k, name, columns));
    return [format, ...roles];
  }

  read(source, format, columns) {
    this.do("read", { source, format, columns }, text("inspect.working"));
  }

  rule(summary) {
    const pick = choice(RULES.map((name) => [name, text(`inspect.${name}`)]), summary.train_on, (rule) => {
      this.do("train_on", { rule }, text("inspect.working"));
    });
    return el("label", {}, text("inspect.train_on"), pick);
  }

  showRow() {
    const { row, view } = this;
    const shownAsText = view !== "tokens" || row.error;
    for (const tab of this.tabs) setAttribute(tab, "aria-pressed", String(tab.dataset.view === view));
    this.plain.hidden = !shownAsText;
    this.tokens.node.hidden = shownAsText;
    this.index.value = row.index ?? 0;
    const counts = row.count === undefined ? "" : text("inspect.row_counts", { tokens: number(row.count), trained: number(row.trained) });
    const lost = (row.losses ?? []).filter((loss, k) => typeof loss === "number" && row.tokens[k][2] & 1);
    const mean = lost.length ? text("inspect.row_loss", { loss: number(lost.reduce((sum, loss) => sum + loss, 0) / lost.length, 3) }) : "";
    const cut = row.cut ? text("inspect.row_cut", { n: number(row.cut) }) : "";
    setText(this.place, [row.place, counts, mean, cut].filter(Boolean).join(" · "));
    setAttribute(this.root, "data-row", String(row.index));
    setText(this.plain, view === "raw" ? row.raw ?? "" : row.error ? `${row.error}\n${row.fix ?? ""}` : row.rendered ?? "");
    this.plain.classList.toggle("nbt-bad", Boolean(row.error) && view !== "raw");
    if (!shownAsText) this.tokens.show(row);
    this.showSpan();
  }

  destroy() {
    this.endTheme();
    this.model.off("change:summary", this.onSummary);
    this.model.off("change:row", this.onRow);
    for (const name of JUDGING) this.model.off(`change:${name}`, this.onJudges);
  }
}

export default panel((model, wishes) => new View(model, wishes));
