// The chat: two models side by side. A blind vote says which answer is better before it says whose it was.

import { el, setText } from "../shared/dom.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";
import "../shared/base.css";
import "./chat.css";

class View {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes });
    this.build();
    this.endTheme = followTheme(this.root);
    this.onTurns = () => this.showTurns();
    this.onState = () => this.showState();
    model.on("change:turns", this.onTurns);
    for (const name of ["busy", "blind", "votes"]) model.on(`change:${name}`, this.onState);
    this.showTurns();
    this.showState();
  }

  build() {
    const button = (key, onclick) => el("button", { type: "button", class: "nbt-btn", onclick }, text(key));
    this.turns = el("div", { class: "nbt-turns", role: "log", "aria-live": "polite", "aria-label": text("chat"), tabindex: 0 });
    this.prompt = el("textarea", { rows: 2, "aria-label": text("chat.prompt"), placeholder: text("chat.prompt"), onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey) { event.preventDefault(); this.ask(); }
    } });
    this.length = el("input", { type: "number", value: 64, min: 1, max: 4096 });
    this.heat = el("input", { type: "number", value: 0, min: 0, max: 2, step: 0.1 });
    this.blind = el("input", { type: "checkbox", onchange: () => this.do("blind", { on: this.blind.checked }) });
    this.send = el("button", { type: "submit", class: "nbt-btn nbt-main" }, text("chat.send"));
    this.save = button("chat.save", () => this.keep());
    this.said = el("span", { class: "nbt-soft nbt-text", role: "status" });
    this.root = el("section", { class: "nbt nbt-chatpanel", role: "region", "aria-label": text("chat"), "data-lm-suppress-shortcuts": "true" },
      this.turns,
      el("form", { onsubmit: (event) => { event.preventDefault(); this.ask(); } }, this.prompt,
        el("div", { class: "nbt-row" }, this.send,
          el("label", {}, text("chat.length"), this.length), el("label", {}, text("chat.heat"), this.heat),
          el("label", {}, this.blind, text("chat.blind")), button("chat.clear", () => this.do("clear", {})), this.save)),
      this.said);
  }

  async do(what, values) {
    const answer = await this.wishes.ask(what, values);
    setText(this.said, answer.error ?? "");
    return answer;
  }

  async ask() {
    const prompt = this.prompt.value;
    if (!prompt.trim() || this.model.get("busy")) return;
    const { error } = await this.do("ask", { prompt, max_new_tokens: Number(this.length.value) || 64, temperature: Number(this.heat.value) || 0 });
    if (!error) this.prompt.value = "";
  }

  async keep() {
    const { value } = await this.do("save", {});
    if (value) setText(this.said, text("chat.saved", { name: value }));
  }

  showState() {
    const [busy, votes] = [this.model.get("busy"), this.model.get("votes")];
    this.send.disabled = busy;
    this.blind.checked = this.model.get("blind");
    this.save.hidden = votes === 0;
    setText(this.save, text("chat.save", { n: votes }));
  }

  showTurns() {
    const turns = this.model.get("turns");
    this.turns.replaceChildren(...turns.map((turn) => this.turn(turn)));
    this.turns.scrollTop = this.turns.scrollHeight;
  }

  turn(turn) {
    const names = this.model.get("sides").map((side) => (side.base ? text("samples.base") : side.name));
    const named = (place) => (turn.order ? names[turn.order[place]] : "AB"[place]);
    const answers = turn.answers.map((answer, place) => el("div", { class: "nbt-answer", "data-voted": String(turn.vote === place) },
      el("div", { class: "nbt-soft nbt-text" }, named(place)),
      turn.errors[place] ? el("div", { class: "nbt-bad nbt-text" }, turn.errors[place])
        : el("div", { class: answer === null ? "nbt-soft" : "nbt-text", dir: "auto" }, answer === null ? text("chat.thinking") : answer || "∅")));
    const ready = turn.blind && turn.vote === null && !turn.answers.includes(null);
    const vote = (place, key) => el("button", { type: "button", class: "nbt-btn", onclick: () => this.do("vote", { turn: turn.number, place }) }, text(key));
    return el("div", { class: "nbt-turn" },
      el("div", { class: "nbt-prompt nbt-text", dir: "auto" }, turn.prompt),
      el("div", { class: "nbt-answers" }, ...answers),
      ready ? el("div", { class: "nbt-row" }, text("chat.which"), vote(0, "chat.a"), vote(1, "chat.b"), vote(2, "chat.neither")) : null);
  }

  destroy() {
    this.endTheme();
    this.model.off("change:turns", this.onTurns);
    for (const name of ["busy", "blind", "votes"]) this.model.off(`change:${name}`, this.onState);
  }
}

export default panel((model, wishes) => new View(model, wishes));
