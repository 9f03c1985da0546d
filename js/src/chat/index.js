// The chat: two models side by side, token by token. A blind vote says which answer is better before it says whose it was.

import { el, focusFrom, setText } from "../shared/dom.js";
import { panel } from "../shared/panel.js";
import { text } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";
import { Answer } from "./answer.js";
import { Answers } from "./answers.js";

const STATES = ["busy", "blind", "votes", "sides", "choices"];
const SPOKEN = 600; // characters of an answer that are read out by themselves

class View {
  constructor(model, answers) {
    Object.assign(this, { model, answers, shown: new Map() });
    this.build();
    this.endTheme = followTheme(this.root);
    this.onTurns = () => this.showTurns();
    this.onState = () => this.showState();
    this.onTokens = (turn, place) => this.follow(() => this.shown.get(turn)?.answers[place].grow());
    model.on("change:turns", this.onTurns);
    for (const name of STATES) model.on(`change:${name}`, this.onState);
    answers.listeners.add(this.onTokens);
    this.showTurns();
    this.showState();
  }

  build() {
    const button = (key, onclick) => el("button", { type: "button", class: "nbt-btn", onclick }, text(key));
    this.turns = el("div", { class: "nbt-turns", role: "group", "aria-label": text("chat"), tabindex: 0 });
    this.spoken = el("div", { class: "nbt-sr", role: "status" });
    this.prompt = el("textarea", { rows: 2, "aria-label": text("chat.prompt"), placeholder: text("chat.prompt"), onkeydown: (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.ask(); }
    } });
    this.length = el("input", { type: "number", value: 512, min: 1, max: 16384 });
    this.heat = el("input", { type: "number", value: 0, min: 0, max: 2, step: 0.1 });
    this.blind = el("input", { type: "checkbox", onchange: () => this.do("blind", { on: this.blind.checked }) });
    this.send = el("button", { type: "submit", class: "nbt-btn nbt-main" }, text("chat.send"));
    this.stop = button("chat.stop", () => this.do("stop", {}));
    this.save = button("chat.save", () => this.keep());
    this.sides = [0, 1].map((side) => el("select", { "aria-label": text(`chat.side_${side}`), onchange: ({ target }) => this.do("pick", { side, key: target.value }),
      onpointerenter: () => this.do("look", {}), onfocus: () => this.do("look", {}) }));
    this.said = el("span", { class: "nbt-soft nbt-text", role: "status" });
    this.root = el("section", { class: "nbt nbt-chatpanel", role: "region", "aria-label": text("chat"), "data-lm-suppress-shortcuts": "true", onkeydown: (event) => {
      if (event.key === "Escape" && this.model.get("busy")) { event.stopPropagation(); this.do("stop", {}); }
    } },
      el("div", { class: "nbt-row nbt-sides" }, this.sides[0], el("span", { class: "nbt-soft" }, text("chat.against")), this.sides[1]),
      this.turns,
      el("form", { onsubmit: (event) => { event.preventDefault(); this.ask(); } }, this.prompt,
        el("div", { class: "nbt-row" }, this.send, this.stop,
          el("label", {}, text("chat.length"), this.length), el("label", {}, text("chat.heat"), this.heat),
          el("label", {}, this.blind, text("chat.blind")), button("chat.clear", () => this.do("clear", {})), this.save)),
      this.said, this.spoken);
  }

  async do(what, values) {
    const answer = await this.answers.ask(what, values);
    setText(this.said, answer.error ?? "");
    return answer;
  }

  async ask() {
    const prompt = this.prompt.value;
    if (!prompt.trim() || this.model.get("busy")) return;
    const { error } = await this.do("ask", { prompt, max_new_tokens: Number(this.length.value) || 512, temperature: Number(this.heat.value) || 0 });
    if (!error && this.prompt.value === prompt) this.prompt.value = "";
  }

  async vote(turn, place) {
    const { value } = await this.do("vote", { turn, place });
    if (value === false) setText(this.said, text("chat.same"));
  }

  async keep() {
    const { value } = await this.do("save", {});
    if (value) setText(this.said, text("chat.saved", { name: value }));
  }

  showState() {
    const [busy, votes] = [this.model.get("busy"), this.model.get("votes")];
    const focused = focusFrom(this.root);
    this.send.disabled = busy;
    this.stop.hidden = !busy;
    if (!busy && focused === this.stop) this.prompt.focus(); // a button that is gone has no focus to give on
    this.sides.forEach((select, side) => this.offer(select, this.model.get("sides")[side], busy));
    this.blind.checked = this.model.get("blind");
    this.save.hidden = votes === 0;
    setText(this.save, text(votes === 1 ? "chat.save_one" : "chat.save", { n: votes }));
  }

  /** Who could answer on a side. */
  offer(select, now, busy) {
    const choices = this.model.get("choices");
    const all = choices.some(({ key }) => key === now.key) ? choices : [now, ...choices];
    const offered = JSON.stringify(all);
    if (this.offered?.get(select) !== offered) {
      (this.offered ??= new Map()).set(select, offered);
      select.replaceChildren(...all.map((choice) => el("option", { value: choice.key }, called(choice))));
    }
    select.value = now.key;
    select.disabled = busy;
  }

  /** Does something to the turns; who reads their end goes on to do so. */
  follow(change) {
    const { scrollHeight, scrollTop, clientHeight } = this.turns;
    change();
    if (scrollHeight - scrollTop - clientHeight < 40) this.turns.scrollTop = this.turns.scrollHeight;
  }

  showTurns() {
    const turns = this.model.get("turns");
    const there = new Set(turns.map(({ number }) => number));
    for (const [number, { node }] of this.shown) if (!there.has(number)) { node.remove(); this.shown.delete(number); }
    const grown = turns.some(({ number }) => !this.shown.has(number));
    this.follow(() => turns.forEach((turn) => this.turn(turn)));
    if (grown) this.turns.scrollTop = this.turns.scrollHeight;
  }

  turn(turn) {
    if (!this.shown.has(turn.number)) this.shown.set(turn.number, this.fresh(turn));
    const { answers, votes } = this.shown.get(turn.number);
    const was = answers.map((answer) => answer.over);
    answers.forEach((answer, place) => answer.update(turn, this.named(turn, place)));
    if (was.includes(false)) this.speak(turn, answers.findLastIndex((answer, place) => answer.over && was[place] === false));
    const ready = turn.blind && turn.vote === null && !turn.answers.includes(null) && !turn.stopped;
    if (votes.hidden && ready) votes.hidden = false;
    if (!ready && votes.contains(focusFrom(votes))) this.prompt.focus();
    votes.hidden = !ready;
  }

  fresh(turn) {
    const answers = [0, 1].map((place) => new Answer(this.answers, turn.number, place));
    const vote = (place, key) => el("button", { type: "button", class: "nbt-btn", onclick: () => this.vote(turn.number, place) }, text(key));
    const votes = el("div", { class: "nbt-row", hidden: true, role: "group", "aria-label": text("chat.which") }, text("chat.which"), vote(0, "chat.a"), vote(1, "chat.b"), vote(2, "chat.neither"));
    const node = el("div", { class: "nbt-turn", "data-turn": turn.number },
      el("div", { class: "nbt-prompt nbt-text", dir: "auto" }, turn.prompt),
      el("div", { class: "nbt-answers" }, ...answers.map((answer) => answer.node)), votes);
    this.turns.append(node);
    return { node, answers, votes };
  }

  named(turn, place) {
    return turn.order ? called(this.model.get("sides")[turn.order[place]]) : "AB"[place];
  }

  /** An answer that is whole is read out once; while it grows, nothing is. */
  speak(turn, place) {
    const answer = turn.answers[place];
    if (place >= 0 && answer) setText(this.spoken, `${this.named(turn, place)}: ${answer.slice(0, SPOKEN)}`);
  }

  destroy() {
    this.endTheme();
    this.model.off("change:turns", this.onTurns);
    for (const name of STATES) this.model.off(`change:${name}`, this.onState);
    this.answers.listeners.delete(this.onTokens);
  }
}

/** A name as people read it; that of a base is in their language. */
const called = ({ name, base }) => (base ? text("chat.base_of", { name }) : name);

export default panel((model, answers) => new View(model, answers), () => new Answers());
