// One run in the list.

import { el, setAttribute, setText } from "../shared/dom.js";
import { bytes, MISSING, number } from "../shared/format.js";
import { language, text } from "../shared/texts.js";

const [WIDE, HIGH] = [96, 24];
const ACTS = {
  interrupted: ["resume"], // one thing is to be done
  failed: ["open", "resume"],
  stopped: ["resume", "open", "chat", "export"],
  finished: ["open", "chat", "export"],
};

export class Line {
  /** @param {{ tick(on: boolean): void, open(what: string): void, resume(): void }} does */
  constructor(does) {
    this.tick = el("input", { type: "checkbox", onchange: () => does.tick(this.tick.checked) });
    this.name = el("span", { dir: "auto" });
    this.opener = el("button", { type: "button", class: "nbt-runname nbt-text", onclick: () => does.open("monitor") }, this.name);
    this.about = el("small", { class: "nbt-text", dir: "auto" });
    this.state = el("span", { class: "nbt-state" });
    this.where = el("small");
    this.curve = el("polyline", { fill: "none", stroke: "currentColor", "stroke-width": 1.5, "stroke-linejoin": "round" });
    this.svg = el("svg", { class: "nbt-curve", viewBox: `0 0 ${WIDE} ${HIGH}`, "aria-hidden": "true" }, this.curve);
    this.loss = el("span", { class: "nbt-figure" });
    this.which = el("small");
    this.size = el("td", { role: "cell", class: "nbt-num" });
    const button = (key, onclick) => el("button", { type: "button", class: "nbt-btn", "data-do": key, onclick }, text(`home.${key}`));
    this.buttons = {
      resume: button("resume", () => does.resume()),
      open: button("open", () => does.open("monitor")),
      chat: button("chat", () => does.open("chat")),
      export: button("export", () => does.open("export")),
    };
    this.resume = this.buttons.resume;
    this.node = el("tr", { role: "row" },
      el("td", { role: "cell" }, this.tick), el("th", { scope: "row", role: "rowheader" }, this.opener, this.about),
      el("td", { role: "cell" }, this.state, this.where), el("td", { role: "cell" }, el("span", { class: "nbt-lossline" }, this.svg, el("span", {}, this.loss, this.which))), this.size,
      el("td", { role: "cell", class: "nbt-homeacts" }, el("div", { class: "nbt-row" }, ...Object.values(this.buttons))));
  }

  /** @param run what is known of it @param {boolean} twice another one has the same name */
  update(run, twice) {
    const seen = JSON.stringify([run, twice]);
    if (seen === this.seen) return;
    this.seen = seen;
    const name = twice ? `${run.name} (${run.id})` : run.name, bad = Boolean(run.trouble);
    setAttribute(this.node, "data-key", run.key);
    setText(this.name, name);
    setAttribute(this.opener, "aria-label", text("home.open_run", { name }));
    this.opener.disabled = bad;
    setAttribute(this.tick, "aria-label", text("home.tick", { name }));
    setText(this.about, [run.model, run.method === "sft" ? "" : run.method, when(run.created)].filter(Boolean).join(" · "));
    setText(this.state, bad ? text("home.unread") : text(`state.${run.state}`));
    setAttribute(this.state, "data-state", bad ? "failed" : run.state);
    setText(this.where, bad ? run.trouble : run.total ? text("step_of", { step: number(run.step), total: number(run.total) }) : run.step ? text("step", { step: number(run.step) }) : "");
    const line = run.line ?? [];
    this.svg.style.visibility = line.length > 1 ? "" : "hidden"; // the numbers stand below each other
    this.curve.setAttribute("points", line.map((y, k) => `${(2 + (k * (WIDE - 4)) / Math.max(1, line.length - 1)).toFixed(1)},${(HIGH - 3 - (y * (HIGH - 6)) / 100).toFixed(1)}`).join(" "));
    const loss = run.best ?? run.loss;
    setText(this.loss, typeof loss === "number" ? number(loss) : "");
    setText(this.which, typeof run.best === "number" ? text("home.best") : typeof run.loss === "number" ? text("home.last") : "");
    setText(this.size, run.bytes ? bytes(run.bytes) : MISSING);
    setAttribute(this.size, "data-label", text("home.size"));
    const acts = bad ? [] : (ACTS[run.state] ?? ["open"]).filter((act) => !run.never?.includes(act) && (run.step > 0 || !["chat", "export"].includes(act)));
    if (!bad && !acts.length) acts.push("open");
    for (const [act, button] of Object.entries(this.buttons)) {
      const said = text(act === "resume" && run.anew ? "anew" : `home.${act}`);
      button.hidden = !acts.includes(act);
      setText(button, said);
      setAttribute(button, "aria-label", text("home.of", { act: said, name }));
    }
  }
}

function when(seconds) {
  return seconds > 0 ? new Date(1000 * seconds).toLocaleString(language(), { dateStyle: "medium", timeStyle: "short" }) : "";
}
