// One answer: its text token by token; the token under the mouse or the arrow keys is told with its probability, its loss
// and what else was near; and all of them as a table.

import { el, setAttribute, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { isMarkdown, markdown } from "../shared/markdown.js";
import { text } from "../shared/texts.js";

const MOVES = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, Home: -1e9, End: 1e9 };
const ROWS = 400; // of the table
const UNLIKELY = 0.1;

export const percent = (share) => `${share >= 0.0995 ? (100 * share).toFixed(0) : share >= 0.0005 ? (100 * share).toFixed(1) : "<\u00a00.1"}\u00a0%`;
/** A token as people read it: blanks and line breaks are seen. */
export const shown = (token) => (token ? token.replaceAll("\n", "↵").replaceAll("\t", "⇥").replace(/^ | $/g, "␣") : "∅");

export class Answer {
  /** @param {import("./answers.js").Answers} answers */
  constructor(answers, turn, place) {
    Object.assign(this, { answers, turn, place, spans: [], here: null });
    this.name = el("div", { class: "nbt-soft nbt-text nbt-who", dir: "auto" });
    this.body = el("div", { class: "nbt-said nbt-text", dir: "auto", tabindex: 0, role: "group", onkeydown: (event) => this.key(event), onfocus: () => this.wake() });
    this.body.addEventListener("mouseover", (event) => {
      this.wake();
      if (event.target.dataset?.k !== undefined) this.tell(Number(event.target.dataset.k));
    });
    this.told = el("div", { role: "status" });
    this.near = el("div", { class: "nbt-near" });
    this.detail = el("div", { class: "nbt-toldtoken", hidden: true }, this.told, this.near);
    this.table = el("details", { class: "nbt-tokentable", hidden: true, ontoggle: () => this.fill() }, el("summary", {}, text("chat.table")));
    this.limit = el("small", { hidden: true });
    this.raw = el("button", { type: "button", class: "nbt-btn", "aria-pressed": "false", hidden: true, onclick: () => this.turnRaw() }, text("chat.raw"));
    this.node = el("div", { class: "nbt-answer" }, el("div", { class: "nbt-row" }, this.name, this.raw), this.body, this.limit, this.detail, this.table);
  }

  /** @param state the turn as the kernel tells it */
  update(state, name) {
    const secret = this.state && this.hidden;
    this.state = state;
    const [answer, error] = [state.answers[this.place], state.errors[this.place]];
    this.over = answer !== null || Boolean(error) || state.stopped;
    setText(this.name, name);
    setAttribute(this.node, "data-voted", String(state.vote === this.place));
    setAttribute(this.body, "aria-label", text("chat.answer_of", { name }));
    setAttribute(this.body, "aria-busy", String(!this.over));
    this.body.classList.toggle("nbt-bad", Boolean(error));
    this.limit.hidden = !state.cut?.[this.place];
    setText(this.limit, text("chat.cut", { n: number(state.limit ?? 0) }));
    if (error) this.plain(error);
    else this.grow();
    if (secret && !this.hidden && this.here !== null) this.tell(this.here);
  }

  /** Shows what is known now; what stands there already stays. */
  grow() {
    const tokens = this.answers.of(this.turn, this.place);
    const answer = this.state.answers[this.place];
    this.raw.hidden = !(this.over && answer && isMarkdown(answer));
    if (!this.raw.hidden && this.raw.getAttribute("aria-pressed") === "false") return this.formatted(answer);
    this.body.classList.remove("nbt-card");
    if (!tokens.length) return this.plain(answer === null ? (this.state.stopped ? text("chat.stopped") : text("chat.thinking")) : answer || "∅", answer === null);
    if (!this.spans.length) this.body.replaceChildren();
    this.body.classList.remove("nbt-soft");
    const fresh = tokens.slice(this.spans.length).map(([piece, loss, , special], k) => el("span", {
      "data-k": this.spans.length + k,
      class: ["nbt-piece", special && "nbt-special", Math.exp(-loss) < UNLIKELY && "nbt-unlikely"].filter(Boolean).join(" "),
    }, piece));
    this.spans.push(...fresh);
    this.body.append(...fresh);
    this.table.hidden = !this.over || this.hidden;
    if (this.table.open) this.fill();
  }

  /** As Markdown; its tokens are a click away. */
  formatted(answer) {
    if (this.written !== answer) this.body.replaceChildren(...markdown(answer));
    this.written = answer;
    this.body.classList.remove("nbt-soft");
    this.body.classList.add("nbt-card");
    this.spans = [];
    this.here = null;
    this.table.hidden = this.hidden || !this.answers.of(this.turn, this.place).length;
  }

  turnRaw() {
    const raw = this.raw.getAttribute("aria-pressed") !== "true";
    this.raw.setAttribute("aria-pressed", String(raw));
    this.written = undefined;
    this.detail.hidden = true;
    this.grow();
    this.wake();
  }

  plain(words, soft = false) {
    setText(this.body, words);
    this.body.classList.toggle("nbt-soft", soft);
    this.spans = [];
  }

  /** Before a blind vote the probabilities would tell who is who. */
  get hidden() {
    return this.state.order === null;
  }

  /** Somebody is here: the tokens are asked for if this page did not hear them. */
  wake() {
    if (this.state.tokens[this.place] > this.answers.of(this.turn, this.place).length && this.over) this.answers.fetch(this.turn, this.place);
  }

  key(event) {
    const move = MOVES[event.key];
    if (move === undefined || !this.spans.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    this.tell(Math.max(0, Math.min(this.spans.length - 1, (this.here ?? (move > 0 ? -1 : 0)) + move)));
    this.spans[this.here].scrollIntoView({ block: "nearest" });
  }

  tell(k) {
    const tokens = this.answers.of(this.turn, this.place);
    if (!tokens[k]) return;
    this.spans[this.here]?.classList.remove("nbt-here");
    this.here = k;
    this.spans[k].classList.add("nbt-here");
    this.detail.hidden = false;
    if (this.hidden) return setText(this.told, text("chat.after_vote"));
    const [piece, loss, others] = tokens[k];
    const near = others.map(([other, share]) => `${shown(other)} ${percent(share)}`).join(", ");
    setText(this.told, text("chat.token", { k: k + 1, n: tokens.length, text: shown(piece), share: percent(Math.exp(-loss)), loss: number(loss, 3) }));
    this.told.append(el("span", { class: "nbt-sr" }, text("chat.instead", { near })));
    this.near.replaceChildren(...others.map(([other, share]) => el("span", { class: "nbt-chip", "aria-hidden": "true", style: `--share:${(100 * share).toFixed(1)}%` },
      el("bdi", {}, shown(other)), ` ${percent(share)}`)));
  }

  fill() {
    if (!this.table.open) return;
    const tokens = this.answers.of(this.turn, this.place);
    const head = el("tr", {}, ...["token", "share", "loss", "others"].map((key) => el("th", { scope: "col" }, text(`chat.${key}_column`))));
    const rows = tokens.slice(0, ROWS).map(([piece, loss, others]) => el("tr", {}, el("th", { scope: "row" }, el("bdi", {}, shown(piece))),
      el("td", {}, percent(Math.exp(-loss))), el("td", {}, number(loss, 3)),
      el("td", {}, ...others.flatMap(([other, share], k) => [k ? ", " : "", el("bdi", {}, shown(other)), ` ${percent(share)}`]))));
    const mean = tokens.reduce((sum, [, loss]) => sum + loss, 0) / tokens.length;
    this.table.replaceChildren(this.table.firstChild,
      el("div", { class: "nbt-soft" }, text("chat.mean", { n: tokens.length, loss: number(mean, 3) })),
      el("div", { class: "nbt-scroll", tabindex: 0, role: "group", "aria-label": text("chat.table") }, el("table", {}, el("thead", {}, head), el("tbody", {}, ...rows))));
  }
}
