// What is said in words: notes, files, sample answers, and the numbers as a table.

import { marked } from "../shared/diff.js";
import { coded, el, setText } from "../shared/dom.js";
import { bytes, MISSING, number } from "../shared/format.js";
import { text } from "../shared/texts.js";
import { mark, memoryParts } from "./machine.js";

/** Warnings, errors and exported files, newest first. */
export class Notes {
  constructor() {
    this.list = el("ul", { class: "nbt-list", "aria-label": text("notes"), tabindex: 0 });
    this.node = el("div", { hidden: true }, this.list);
  }

  update({ notes, exports, status }) {
    const said = new Map(notes.map((note) => [JSON.stringify([note.message, note.cause, note.fix]), note])); // a resumed run says some again
    const items = [...(status.error ? [status.error] : []), ...exports.map(exported), ...said.values()].sort((a, b) => b.time - a.time);
    const seen = JSON.stringify(items);
    if (seen === this.seen) return;
    this.seen = seen;
    this.node.hidden = items.length === 0;
    this.list.replaceChildren(...items.map((item) => el("li", { "data-level": item.level, class: "nbt-text", dir: "auto" },
      ...coded([item.message, item.cause].filter(Boolean).join(" ")),
      item.fix ? el("div", { class: "nbt-soft" }, ...coded(text("note.fix", { fix: item.fix }))) : null)));
  }
}

function exported({ kind, path, bytes: size, done, detail, time }) {
  const state = done >= 1 ? [path, size ? bytes(size) : ""] : [`${Math.round(100 * done)} %`, path];
  return { level: "good", time, message: [kind, ...state, detail].filter(Boolean).join(" · ") };
}

/** A table that may be wider than its place. */
const scrolled = (table) => el("div", { class: "nbt-scroll", tabindex: 0 }, table);

/** Answers to the spec's sample prompts: the base model's, and the newest three. */
export class Samples {
  constructor() {
    this.table = el("table");
    this.node = el("div", { hidden: true }, el("h4", {}, text("samples")), scrolled(this.table));
  }

  update({ samples }) {
    if (samples.length === this.count) return;
    this.count = samples.length;
    this.node.hidden = !samples.length;
    const steps = [...new Set(samples.map((item) => item.step))].sort((a, b) => a - b);
    const shown = steps.length > 4 ? [steps[0], ...steps.slice(-3)] : steps;
    const answers = new Map(samples.map((item) => [`${item.step} ${item.prompt}`, item.answer]));
    const head = (step) => (step === 0 ? text("samples.base") : text("step", { step }));
    this.table.replaceChildren(
      el("tr", {}, el("th", { scope: "col" }, text("samples.prompt")), ...shown.map((step) => el("th", { scope: "col" }, head(step)))),
      ...[...new Set(samples.map((item) => item.prompt))].map((prompt) => el("tr", {},
        el("th", { scope: "row", class: "nbt-text", dir: "auto" }, prompt),
        ...shown.map((step) => el("td", { class: "nbt-text", dir: "auto" }, ...answer(answers, shown[0], step, prompt))))));
  }
}

/** An answer; what the first one does not say is marked. */
function answer(answers, first, step, prompt) {
  const [before, after] = [first, step].map((each) => answers.get(`${each} ${prompt}`) ?? "");
  return step === first ? [after] : marked(before, after);
}

/** The checkpoints that are kept, each with the held-out loss it had; a run that has ended can go on from any of them. */
export class Checkpoints {
  constructor(resume) {
    this.resume = resume;
    this.table = el("table");
    this.node = el("details", { class: "nbt-checkpoints", hidden: true }, el("summary", {}, text("checkpoints")), scrolled(this.table));
  }

  update({ checkpoints, status }) {
    const ended = ["stopped", "failed", "interrupted"].includes(status.state);
    const seen = JSON.stringify([checkpoints, ended]);
    if (seen === this.seen) return;
    this.seen = seen;
    this.node.hidden = !checkpoints.length;
    const best = Math.min(...checkpoints.map((item) => item.loss ?? Infinity));
    const head = ["table.step", "eval", "checkpoints.size"].map((key) => el("th", { scope: "col" }, text(key)));
    const row = ({ step, bytes: size, loss }) => el("tr", {}, el("th", { scope: "row" }, number(step)),
      el("td", {}, loss === null ? "–" : number(loss), loss !== null && loss === best ? el("small", {}, ` ${text("loss.best")}`) : null), el("td", {}, bytes(size)),
      el("td", {}, ended ? el("button", { type: "button", class: "nbt-btn", "data-step": step, onclick: () => this.resume(step) }, text("checkpoints.resume")) : null));
    this.table.replaceChildren(el("tr", {}, ...head, el("td")), ...checkpoints.toReversed().map(row));
  }
}

/** What the plan expects to hold memory, beside what was measured. */
export class Memory {
  constructor() {
    this.table = el("table");
    this.node = el("details", { hidden: true }, el("summary", {}, text("memory.parts")), scrolled(this.table));
  }

  update({ status, rows, machine }) {
    const plan = status.memory_plan ?? [];
    this.node.hidden = !plan.length && !machine.length;
    const planned = plan.reduce((sum, [, size]) => sum + size, 0);
    const now = rows.last("memory");
    const most = rows.most("memory");
    const seen = JSON.stringify([plan, machine.at(-1)?.parts, now, most]);
    if (seen === this.seen) return;
    this.seen = seen;
    const parts = memoryParts(machine, status);
    const head = ["memory.part", "memory.plan", "memory.now", "memory.most"].map((key) => el("th", { scope: "col" }, text(key)));
    const line = (name, k, ...sizes) => el("tr", {}, el("th", { scope: "row" }, k === null ? null : mark(k), name),
      ...sizes.map((size) => el("td", {}, Number.isFinite(size) ? bytes(size) : MISSING)));
    const lines = parts.length ? parts.map((part, k) => line(text(`memory.${part.name}`), k, part.planned, part.now, part.most))
      : plan.map(([name, size]) => line(text(`memory.${name}`), null, size, NaN, NaN));
    const held = parts.reduce((sum, part) => sum + part.now, 0);
    this.table.replaceChildren(el("tr", {}, ...head), ...lines,
      line(text("memory.all"), null, planned, parts.length ? held : now, most));
  }
}

/** What the model was found to be able to: when the run was planned, then on the loaded model. */
export class Abilities {
  constructor() {
    this.table = el("table");
    this.node = el("details", { hidden: true }, el("summary", {}, text("abilities")), scrolled(this.table));
  }

  update({ abilities }) {
    const seen = JSON.stringify(abilities);
    if (seen === this.seen) return;
    this.seen = seen;
    this.node.hidden = !abilities.length;
    this.table.replaceChildren(...abilities.map(({ what, words }) => el("tr", {},
      el("th", { scope: "row", class: "nbt-text" }, what), el("td", { class: "nbt-text", dir: "auto" }, words))));
  }
}

/** The charts' numbers for those who do not see charts; filled only while it is open. */
export class Table {
  constructor(limit = 50) {
    this.limit = limit;
    this.body = el("tbody");
    this.caption = el("caption", { class: "nbt-sr" });
    const names = ["table.step", "loss", "rate", "grad", "speed", "memory.held", "busy.share"].map((key) => text(key));
    this.node = el("details", {}, el("summary", {}, text("table")),
      scrolled(el("table", {}, this.caption, el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)))), this.body)));
    this.node.addEventListener("toggle", () => { this.next = undefined; this.last && this.update(this.last); });
  }

  update(store) {
    this.last = store;
    const { rows, machine } = store;
    if (!this.node.open || rows.next === this.next) return;
    this.next = rows.next;
    const columns = ["step", "loss", "learning_rate", "grad_norm", "tokens_per_second"].map((name) => rows.column(name));
    const picked = Array.from({ length: Math.min(this.limit, rows.length) }, (_, k) => rows.length - 1 - k);
    const memory = rows.column("memory");
    const busy = (step) => machine.findLast((item) => item.step <= step)?.busy ?? null;
    const machines = (i) => [bytes(memory[i]), busy(rows.column("step")[i])].map((value) => el("td", {}, value === null ? MISSING : typeof value === "number" ? `${Math.round(value)} %` : value));
    setText(this.caption, text("table.caption", { n: picked.length }));
    this.body.replaceChildren(...picked.map((i) => el("tr", {}, ...columns.map((column) => el("td", {}, number(column[i]))), ...machines(i))));
  }
}
