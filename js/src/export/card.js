// The model card of a push: as it will look, and as text that may be changed. A changed one travels with the push.

import { el, setText } from "../shared/dom.js";
import { text } from "../shared/texts.js";
import { markdown } from "../shared/markdown.js";

export class Card {
  /** @param {() => void} ask asks the kernel for the card of what the form says now */
  constructor(ask) {
    this.ask = ask;
    this.written = "";
    const button = (key, onclick) => el("button", { type: "button", class: "nbt-btn", onclick }, text(key));
    this.look = button("card.preview", () => this.show(false));
    this.edit = button("card.edit", () => this.show(true));
    this.again = button("card.again", () => this.reset());
    this.area = el("textarea", { rows: 14, spellcheck: "false", "aria-label": text("card.text"), oninput: () => this.say() });
    this.shown = el("div", { class: "nbt-card nbt-text", tabindex: 0, role: "group", "aria-label": text("card.preview") });
    this.changed = el("span", { class: "nbt-soft", role: "status" });
    this.node = el("div", { class: "nbt-box", role: "group", "aria-label": text("card.title"), hidden: true },
      el("h4", {}, text("card.title")), el("div", { class: "nbt-row" }, this.look, this.edit, this.again, this.changed), this.shown, this.area);
    this.show(false);
  }

  get isEdited() {
    return this.area.value !== this.written;
  }

  /** The card of one's own, or null. */
  get own() {
    return this.written && this.isEdited ? this.area.value : null;
  }

  /** The kernel's card; one that was changed by hand stays. */
  take(card) {
    if (!card?.text || card.text === this.written) return;
    const keep = this.own;
    this.written = card.text;
    this.area.value = keep ?? card.text;
    this.show(!this.area.hidden);
  }

  show(editing) {
    this.area.hidden = !editing;
    this.shown.hidden = editing;
    this.look.setAttribute("aria-pressed", String(!editing));
    this.edit.setAttribute("aria-pressed", String(editing));
    if (!editing) this.shown.replaceChildren(...markdown(this.area.value, { front: true }));
    this.say();
  }

  reset() {
    this.area.value = this.written;
    this.show(!this.area.hidden);
  }

  say() {
    setText(this.changed, this.own === null ? "" : text("card.changed"));
    this.again.disabled = this.own === null;
  }

  toggle() {
    this.node.hidden = !this.node.hidden;
    if (!this.node.hidden) this.ask();
  }
}
