// The buttons: each sets a wish in the kernel and shows the line of code that does the same.

import { el, freshId, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";

const ENDED = new Set(["stopped", "finished", "failed", "interrupted"]);
const SAID = ["open", "resume", "stop", "drop"];
const BUSY_AFTER = 1500;

export class Controls {
  constructor(store) {
    this.store = store;
    this.said = el("span", { class: "nbt-text" });
    this.code = el("code");
    this.codeLine = el("div", { class: "nbt-row nbt-soft", hidden: true }, text("code"), this.code);
    this.pause = this.button("pause", () => this.togglePause());
    this.stop = this.button("stop", () => this.do("stop", "run.stop()"));
    this.drop = this.button("drop", () => this.toggle());
    this.sample = this.button("sample", () => this.do("sample", "run.sample()"));
    this.checkpoint = this.button("checkpoint", () => this.do("checkpoint", "run.checkpoint()"));
    this.resume = this.button("resume", () => this.do("resume", "run.resume()"));
    this.chat = this.button("chat", () => this.open("chat", "run.chat()"), { class: "nbt-btn nbt-main" });
    this.export = this.button("export", () => this.open("export", 'run.export.gguf("q8_0")'));
    this.push = this.button("push", () => this.open("export", 'run.push_to_hub("you/my-model")', "push"));
    this.compare = this.button("compare", () => this.open("compare", "nbtune.widgets.compare([run, other])"));
    this.losses = this.button("losses", () => this.open("losses", "run.losses()"));
    this.dropBox = this.makeDropBox();
    this.rateForm = this.makeRateForm();
    this.dropBox.id = freshId("box");
    this.drop.setAttribute("aria-controls", this.dropBox.id);
    this.close();
    this.dropBox.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.close();
      this.drop.focus();
    });
    this.node = el("div", { class: "nbt-controls", style: "display:grid;gap:8px" },
      el("div", { class: "nbt-row" }, this.pause, this.stop, this.drop, this.resume, this.sample, this.checkpoint, this.chat, this.export, this.push, this.compare, this.losses),
      this.dropBox, this.rateForm,
      el("div", { role: "status" }, this.said), this.codeLine);
  }

  button(key, onclick, props = {}) {
    return el("button", { type: "button", class: "nbt-btn", onclick, "data-do": key, ...props }, text(key));
  }

  makeDropBox() {
    this.lost = el("p");
    const go = this.button("drop.go", () => { this.close(); this.do("drop", "run.stop(save=False)"); });
    const cancel = this.button("cancel", () => { this.close(); this.drop.focus(); });
    return el("div", { class: "nbt-box", role: "group", "aria-label": text("drop"), hidden: true }, this.lost, el("div", { class: "nbt-row" }, go, cancel));
  }

  makeRateForm() {
    const rate = el("input", { type: "text", inputmode: "decimal", spellcheck: "false", autocomplete: "off", size: 8 });
    this.rate = rate;
    const submit = (event) => {
      event.preventDefault();
      const wanted = Number(rate.value.trim().replace(",", "."));
      if (!(wanted > 0)) return setText(this.said, text("rate.bad"));
      return this.do("rate", `run.set_learning_rate(${wanted})`, { rate: wanted });
    };
    return el("form", { class: "nbt-row", onsubmit: submit },
      el("label", {}, text("rate.peak"), rate), el("button", { type: "submit", class: "nbt-btn", "data-do": "rate" }, text("rate.set")));
  }

  toggle() {
    if (!this.dropBox.hidden) return this.close();
    this.dropBox.hidden = false;
    this.drop.setAttribute("aria-expanded", "true");
    this.dropBox.querySelector("button").focus();
  }

  close() {
    this.dropBox.hidden = true;
    this.drop.setAttribute("aria-expanded", "false");
  }

  /** Opens a panel below the buttons, and puts the cursor into it. */
  open(what, code, opener = what) {
    this.beside.expect(opener === "push" ? ".nbt-exportpanel form input" : undefined);
    this.opener = this[opener];
    return this.do("open", code, { what });
  }

  leave() {
    this.opener?.focus();
    return this.store.wishes.ask("close");
  }

  togglePause() {
    const paused = this.store.status.state === "paused";
    return this.do(paused ? "unpause" : "pause", paused ? "run.unpause()" : "run.pause()");
  }

  async do(what, code, values = {}) {
    const asked = text(`asked.${SAID.includes(what) ? what : "soon"}`);
    setText(this.said, asked);
    setText(this.code, code);
    this.codeLine.hidden = false;
    const command = `nbtune ${what === "stop" || what === "drop" ? "stop" : "runs"} ${this.store.status.name ?? ""}`;
    const late = setTimeout(() => setText(this.said, text("busy", { command })), BUSY_AFTER);
    const answer = await this.store.wishes.ask(what, values);
    clearTimeout(late);
    setText(this.said, answer.error || asked);
    this.said.classList.toggle("nbt-bad", Boolean(answer.error));
    this.saidIn = this.situation();
  }

  /** What a click waits for: a new state, a file, or a note. */
  situation() {
    const { status, exports, notes, samples, checkpoints } = this.store;
    const last = checkpoints.at(-1)?.step;
    const opened = this.store.model.get("opened")?.model;
    return JSON.stringify([opened, status.state, exports.filter((item) => item.done >= 1).length, notes.length, samples.length, last]);
  }

  update() {
    const { state, peak_rate: peak } = this.store.status;
    const ended = ENDED.has(state);
    const working = ["running", "paused"].includes(state);
    const last = this.store.checkpoints.at(-1)?.step ?? 0;
    setText(this.pause, text(state === "paused" ? "unpause" : "pause"));
    this.export.hidden = this.push.hidden = false;
    this.pause.hidden = this.stop.hidden = this.drop.hidden = ended;
    this.sample.hidden = this.checkpoint.hidden = this.rateForm.hidden = ended;
    this.sample.hidden ||= !this.store.status.asks; // there is nothing to ask
    this.sample.disabled = this.checkpoint.disabled = this.rateForm.lastChild.disabled = !working;
    this.rate.placeholder = peak ? number(peak) : "";
    setText(this.lost, text("drop.lost", { step: last }));
    if (ended && !this.dropBox.hidden) this.close();
    for (const button of [this.chat, this.compare, this.losses]) button.hidden = !(ended && this.store.status.step);
    setText(this.resume, text(last ? "resume" : "anew"));
    this.resume.hidden = !(ended && state !== "finished" && this.store.status.resumable);
    this.pause.disabled = !working;
    this.stop.disabled = this.drop.disabled = state === "stopping";
    this.push.disabled = this.export.disabled = !this.store.status.step;
    const lost = ["interrupted", "failed"].includes(state) && this.store.status.resumable; // one thing is to be done
    for (const button of [this.chat, this.export, this.push, this.compare, this.losses]) button.hidden ||= lost && state === "interrupted";
    for (const name of this.store.status.never ?? []) this[name].hidden = true; // what could do nothing for this run
    this.pause.classList.toggle("nbt-main", state === "paused");
    this.resume.classList.toggle("nbt-main", lost);
    this.chat.classList.toggle("nbt-main", !lost);
    if (this.saidIn !== undefined && this.saidIn !== this.situation()) {
      this.saidIn = undefined;
      if (!this.said.classList.contains("nbt-bad")) setText(this.said, "");
    }
  }
}
