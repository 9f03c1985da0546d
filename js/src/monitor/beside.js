// A panel that the monitor opens below itself, such as the chat: a widget of its own, by the page's way to show one in another.

import { el, setText } from "../shared/dom.js";
import { Nested } from "../shared/nested.js";
import { text } from "../shared/texts.js";

export class Beside {
  constructor(model, close) {
    Object.assign(this, { model, close });
    this.host = el("div");
    this.nested = new Nested(model, this.host);
    this.node = el("div", { class: "nbt-beside", role: "group", hidden: true }, el("div", { class: "nbt-row" },
      el("button", { type: "button", class: "nbt-btn", "data-do": "close", onclick: () => this.close() }, text("beside.close"))), this.host);
    this.node.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented) return;
      event.stopPropagation();
      this.close();
    });
    this.changed = () => this.show();
    model.on("change:opened", this.changed);
    this.show();
  }

  /** @param {string} focus the next one that is shown was asked for here, and which of its fields gets the cursor */
  expect(focus = "textarea, input") {
    this.focus = focus;
    if (this.nested.id) this.enter(0); // it is open already
  }

  async show() {
    const { what, model: id } = this.model.get("opened") ?? {};
    this.node.hidden = !id;
    if (id) this.node.setAttribute("aria-label", text(what));
    const shown = await this.nested.show(id);
    if (shown === false) setText(this.host, text("beside.no_view"));
    if (shown !== undefined) this.enter();
  }

  /** Puts the cursor into what was asked for, once it is there: a widget in another one is drawn in its own time. */
  enter(frames = 120) {
    if (!this.focus || !this.nested.id) return;
    const field = this.host.querySelector(this.focus);
    if (!field && frames) return requestAnimationFrame(() => this.enter(frames - 1));
    this.focus = "";
    (field ?? this.node.querySelector("button")).focus();
  }

  destroy() {
    this.model.off("change:opened", this.changed);
    this.nested.drop();
  }
}
