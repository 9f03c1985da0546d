// The buttons: each sets a wish in the kernel and shows the line of code that does the same.

import { el, freshId, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";

const ENDED = new Set(["stopped", "finished", "failed", "interrupted"]);
const BUSY_AFTER = 1500;

export class Controls {
  constructor(store) {
    this.store = store;
    this.said = el("span", { class: "nbt-text" });
    this.code = el("code");
    this.codeLine = el("div", { class: "nbt-row nbt-soft", hidden: true }, text("code"), this.code);
    this.pause = this.button("pause", () => this.togglePause());
    this.stop = this.button("stop", () => this.do("stop", "run.stop()"));
    this.drop = this.button("drop", () => this.toggle("dropBox"));
    this.sample = this.button("sample", () => this.do("sample", "run.sample()"));
    this.checkpoint = this.button("checkpoint", () => this.do("checkpoint", "run.checkpoint()"));
    this.resume = this.button("resume", () => this.do("resume", "run.resume()"));
    this.export = this.button("export", () => this.toggle("exportBox"));
    this.push = this.button("push", () => this.toggle("pushBox"));
    this.chat = this.button("chat", () => this.open("chat", "run.chat()"));
    this.exportBox = this.makeExportBox();
    this.pushBox = this.makePushBox();
    this.dropBox = this.makeDropBox();
    this.rateForm = this.makeRateForm();
    this.openers = { exportBox: this.export, pushBox: this.push, dropBox: this.drop };
    for (const [name, opener] of Object.entries(this.openers)) {
      const box = this[name];
      box.id = freshId("box");
      opener.setAttribute("aria-controls", box.id);
      opener.setAttribute("aria-expanded", "false");
      box.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        event.stopPropagation();
        this.close();
        opener.focus();
      });
    }
    this.node = el("div", { class: "nbt-controls", style: "display:grid;gap:8px" },
      el("div", { class: "nbt-row" }, this.pause, this.stop, this.drop, this.resume, this.sample, this.checkpoint, this.chat, this.export, this.push),
      this.dropBox, this.exportBox, this.pushBox, this.rateForm,
      el("div", { role: "status" }, this.said), this.codeLine);
  }

  button(key, onclick, props = {}) {
    return el("button", { type: "button", class: "nbt-btn", onclick, "data-do": key, ...props }, text(key));
  }

  makeExportBox() {
    const choice = (kind, code) => el("button", {
      type: "button", class: "nbt-btn", "data-kind": kind,
      onclick: () => { this.close(); this.export.focus(); this.do("export", code, { kind }); },
    }, text(`export.${kind}`), el("small", {}, text(`export.${kind}.why`)));
    return el("div", { class: "nbt-box", role: "group", "aria-label": text("export.title"), hidden: true },
      el("h4", {}, text("export.title")),
      el("div", { class: "nbt-choices" },
        ...["q8_0", "q4_k_m", "f16"].map((type) => choice(type, `run.export.gguf("${type}")`)),
        ...["ollama", "merged", "adapter", "adapter_gguf"].map((what) => choice(what, `run.export.${what}()`)),
        el("small", {}, text("export.others"), " ", el("code", {}, "nbtune.widgets.exporter(run)"))));
  }

  makePushBox() {
    const repo = el("input", { type: "text", placeholder: text("push.example"), spellcheck: "false", autocomplete: "off", size: 26 });
    const secret = el("input", { type: "checkbox", checked: true });
    const what = el("select", { "aria-label": text("push.what") }, ...["adapter", "merged", "gguf"].map((value) => el("option", { value }, text(`push.${value}`))));
    const go = el("button", { type: "submit", class: "nbt-btn nbt-main" }, text("push.go"));
    const cancel = this.button("cancel", () => { this.close(); this.push.focus(); });
    const submit = (event) => {
      event.preventDefault();
      const name = repo.value.trim();
      if (!/^[\w.-]+\/[\w.-]+$/.test(name)) return setText(this.said, text("push.bad"));
      this.close();
      this.push.focus();
      const kind = what.value === "adapter" ? "" : `, what=${JSON.stringify(what.value)}`;
      const code = `run.push_to_hub(${JSON.stringify(name)}${kind}${secret.checked ? "" : ", private=False"})`;
      this.do("push", code, { repo: name, private: secret.checked, what: what.value });
    };
    return el("form", { class: "nbt-box", "aria-label": text("push.title"), hidden: true, onsubmit: submit },
      el("h4", {}, text("push.title")),
      el("div", { class: "nbt-row" },
        el("label", {}, text("push.repo"), repo), what, el("label", {}, secret, text("push.private")), go, cancel));
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

  toggle(name) {
    const open = this[name].hidden;
    this.close();
    if (!open) return;
    this[name].hidden = false;
    this.openers[name].setAttribute("aria-expanded", "true");
    this[name].querySelector("button, input").focus();
  }

  close() {
    for (const [name, opener] of Object.entries(this.openers)) {
      this[name].hidden = true;
      opener.setAttribute("aria-expanded", "false");
    }
  }

  /** Opens a panel below the buttons, and puts the cursor into it. */
  open(what, code) {
    this.beside.expect();
    this.opener = this[what];
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
    setText(this.said, text(`asked.${what}`));
    setText(this.code, code);
    this.codeLine.hidden = false;
    const command = `nbtune ${what === "stop" || what === "drop" ? "stop" : "runs"} ${this.store.status.name ?? ""}`;
    const late = setTimeout(() => setText(this.said, text("busy", { command })), BUSY_AFTER);
    const answer = await this.store.wishes.ask(what, values);
    clearTimeout(late);
    setText(this.said, answer.error || text(`asked.${what}`));
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
    this.pause.hidden = this.stop.hidden = this.drop.hidden = ended;
    this.sample.hidden = this.checkpoint.hidden = this.rateForm.hidden = ended;
    this.sample.disabled = this.checkpoint.disabled = this.rateForm.lastChild.disabled = !working;
    this.rate.placeholder = peak ? number(peak) : "";
    setText(this.lost, text("drop.lost", { step: last }));
    if (ended && !this.dropBox.hidden) this.close();
    this.chat.hidden = !(ended && this.store.status.exportable);
    this.resume.hidden = !(ended && state !== "finished" && this.store.status.resumable);
    this.pause.disabled = !working;
    this.stop.disabled = this.drop.disabled = state === "stopping";
    this.push.disabled = this.export.disabled = !this.store.status.exportable;
    if (this.saidIn !== undefined && this.saidIn !== this.situation()) {
      this.saidIn = undefined;
      if (!this.said.classList.contains("nbt-bad")) setText(this.said, "");
    }
  }
}
