// A row's tokens: trained ones coloured and underlined, those that end an answer boxed; one of them is told in full, and
// some next to each other can be selected, by dragging or with Shift and the arrow keys.

import { el, setAttribute, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";

const [TRAINED, TERMINATOR, SPECIAL, JOINED] = [1, 2, 4, 8];
const MOVES = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 10, ArrowUp: -10, PageDown: 40, PageUp: -40, Home: -1e9, End: 1e9 };
const SHOWN = 80; // characters of a selection that are told

export class TokenPage {
  /** @param {() => void} selected is called when another stretch is selected */
  constructor(selected) {
    this.selected = selected;
    this.page = el("div", { class: "nbt-page nbt-tokens", tabindex: 0, role: "group", "aria-label": text("inspect.tokens_label"), onkeydown: (event) => this.key(event) });
    this.page.addEventListener("mouseover", (event) => this.over(event));
    this.page.addEventListener("mousedown", (event) => this.down(event));
    this.detail = el("div", { class: "nbt-detail nbt-text", role: "status" }, text("inspect.hint"));
    this.more = el("div", { class: "nbt-soft" });
    this.node = el("div", {}, this.page, this.more, this.detail, el("div", { class: "nbt-soft" }, text("inspect.legend")));
  }

  /** Another row begins without a selection; the same row, read anew, keeps it. */
  show(row) {
    const same = this.index === row.index && this.items?.length === row.tokens?.length;
    this.index = row.index;
    this.items = row.tokens ?? [];
    this.losses = row.losses;
    if (!same) this.here = this.anchor = this.end = undefined;
    this.page.replaceChildren(...this.items.map(([, shown, flags], k) => el("span", {
      "data-k": k,
      class: ["nbt-tok", flags & TRAINED && "nbt-on", flags & TERMINATOR && "nbt-end", flags & SPECIAL && "nbt-special", flags & JOINED && "nbt-joined"].filter(Boolean).join(" "),
    }, flags & JOINED ? "" : visible(shown))));
    if (!same) this.page.scrollTop = 0;
    setText(this.more, row.more ? text("inspect.more", { n: number(row.more) }) : "");
    this.mark();
    if (same && this.here !== undefined) this.tell(this.here);
    else setText(this.detail, text("inspect.hint"));
  }

  /** First and last selected token, or null. */
  get span() {
    return this.anchor === undefined ? null : [Math.min(this.anchor, this.end), Math.max(this.anchor, this.end)];
  }

  select(anchor, end) {
    [this.anchor, this.end] = [anchor, end];
    this.mark();
    this.tell(end);
  }

  mark() {
    const [first, last] = this.span ?? [1, 0];
    for (const [k, node] of [...this.page.children].entries()) node.classList.toggle("nbt-sel", k >= first && k <= last);
    this.selected();
  }

  over({ target, buttons }) {
    const k = target.dataset?.k;
    if (k === undefined) return;
    if (buttons & 1 && this.dragging) this.select(this.anchor, Number(k));
    else this.tell(Number(k));
  }

  down(event) {
    const k = event.target.dataset?.k;
    this.dragging = k !== undefined && event.button === 0;
    if (!this.dragging) return;
    event.preventDefault(); // tokens are selected, not characters
    this.page.focus();
    this.select(event.shiftKey && this.anchor !== undefined ? this.anchor : Number(k), Number(k));
  }

  key(event) {
    const move = MOVES[event.key];
    if (move === undefined || !this.items.length || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation();
    const to = Math.max(0, Math.min(this.items.length - 1, (this.here ?? -1) + move));
    this.select(event.shiftKey ? this.anchor ?? this.here ?? to : to, to);
    this.page.children[to].scrollIntoView({ block: "nearest" });
  }

  /** The first of the tokens that make up the characters of a token together, and how many they are. */
  parts(k) {
    let [first, end] = [k, k + 1];
    while (first > 0 && this.items[first][2] & JOINED) first -= 1;
    while (end < this.items.length && this.items[end][2] & JOINED) end += 1;
    return [first, end - first];
  }

  tell(k) {
    if (this.here !== undefined) this.page.children[this.here]?.classList.remove("nbt-here");
    this.here = k;
    this.page.children[k].classList.add("nbt-here");
    const [id, own, flags] = this.items[k];
    const [begin, parts] = this.parts(k);
    const shown = parts > 1 ? this.items[begin][1] : own;
    const what = [flags & TRAINED ? "trained" : "untrained", flags & TERMINATOR && "terminator", flags & SPECIAL && "special"];
    const loss = this.losses?.[k];
    const words = [text("inspect.token", {
      k, id, text: JSON.stringify(shown), what: what.filter(Boolean).map((key) => text(`inspect.${key}`)).join(", "),
    })];
    if (parts > 1) words.push(text("inspect.part", { k: k - begin + 1, n: parts }));
    if (typeof loss === "number") words.push(text("inspect.loss", { loss: number(loss, 3), share: `${number(100 * Math.exp(-loss), 2)} %` }));
    const [first, last] = this.span ?? [0, 0];
    if (last > first) {
      const chosen = this.items.slice(first, last + 1).map(([, each]) => each).join("");
      const some = [...chosen];
      words.push(text("inspect.chosen", { n: last - first + 1, text: JSON.stringify(some.length > SHOWN ? `${some.slice(0, SHOWN).join("")}…` : chosen) }));
    }
    setText(this.detail, words.join(" · "));
    setAttribute(this.page, "data-here", String(k));
  }
}

/** Line breaks are shown and kept; nothing else is changed. */
export const visible = (shown) => shown.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅";
