// A row's tokens: trained ones coloured and underlined, those that end an answer boxed; one of them is told in full.

import { el, setAttribute, setText } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";

const [TRAINED, TERMINATOR, SPECIAL] = [1, 2, 4];
const MOVES = { ArrowRight: 1, ArrowLeft: -1, PageDown: 40, PageUp: -40, Home: -1e9, End: 1e9 };

export class TokenPage {
  constructor() {
    this.page = el("div", { class: "nbt-page nbt-tokens", tabindex: 0, role: "group", "aria-label": text("inspect.tokens"), onkeydown: (event) => this.key(event) });
    this.page.addEventListener("mouseover", (event) => {
      if (event.target.dataset?.k !== undefined) this.tell(Number(event.target.dataset.k));
    });
    this.detail = el("div", { class: "nbt-detail nbt-text", role: "status" }, text("inspect.hint"));
    this.more = el("div", { class: "nbt-soft" });
    this.node = el("div", {}, this.page, this.more, this.detail, el("div", { class: "nbt-soft" }, text("inspect.legend")));
  }

  show(row) {
    this.items = row.tokens ?? [];
    this.here = undefined;
    this.page.replaceChildren(...this.items.map(([, shown, flags], k) => el("span", {
      "data-k": k,
      class: ["nbt-tok", flags & TRAINED && "nbt-on", flags & TERMINATOR && "nbt-end", flags & SPECIAL && "nbt-special"].filter(Boolean).join(" "),
    }, visible(shown))));
    this.page.scrollTop = 0;
    setText(this.detail, text("inspect.hint"));
    setText(this.more, row.more ? text("inspect.more", { n: number(row.more) }) : "");
  }

  key(event) {
    const move = MOVES[event.key];
    if (move === undefined || !this.items.length) return;
    event.preventDefault();
    this.tell(Math.max(0, Math.min(this.items.length - 1, (this.here ?? -1) + move)));
    this.page.children[this.here].scrollIntoView({ block: "nearest" });
  }

  tell(k) {
    if (this.here !== undefined) this.page.children[this.here]?.classList.remove("nbt-here");
    this.here = k;
    this.page.children[k].classList.add("nbt-here");
    const [id, shown, flags] = this.items[k];
    const what = [flags & TRAINED ? "trained" : "untrained", flags & TERMINATOR && "terminator", flags & SPECIAL && "special"];
    setText(this.detail, text("inspect.token", {
      k, id, text: JSON.stringify(shown), what: what.filter(Boolean).map((key) => text(`inspect.${key}`)).join(", "),
    }));
    setAttribute(this.page, "data-here", String(k));
  }
}

/** Line breaks are shown and kept; nothing else is changed. */
export const visible = (shown) => shown.replaceAll("\n", "↵\n").replaceAll("\t", "⇥\t") || "∅";
