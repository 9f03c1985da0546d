// A panel that the monitor opens below itself, such as the chat: a widget of its own, by the page's way to show one in another.

import { el, setText } from "../shared/dom.js";
import { text } from "../shared/texts.js";

export class Beside {
  constructor(model, close) {
    Object.assign(this, { model, close });
    this.host = el("div");
    this.node = el("div", { class: "nbt-box", role: "group", hidden: true }, el("div", { class: "nbt-row" },
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

  /** @param {boolean} focus the next one that is shown was asked for here */
  expect(focus = true) {
    this.focus = focus;
  }

  async show() {
    const { what, model: id } = this.model.get("opened") ?? {};
    if (id === this.shown) return;
    this.shown = id;
    this.child?.remove?.();
    this.child = null;
    this.host.replaceChildren();
    this.node.hidden = !id;
    if (!id) return;
    this.node.setAttribute("aria-label", text(what));
    try {
      const manager = this.model.widget_manager;
      const child = await manager.create_view(await manager.get_model(id));
      if (this.shown !== id) return child.remove();
      this.child = child;
      this.host.replaceChildren(child.el);
    } catch {
      setText(this.host, text("beside.no_view"));
    }
    this.enter();
  }

  /** Puts the cursor into what was asked for, once it is there: a widget in another one is drawn in its own time. */
  enter(frames = 120) {
    const field = this.host.querySelector("textarea, input");
    if (!this.focus || !this.shown) return;
    if (!field && frames) return requestAnimationFrame(() => this.enter(frames - 1));
    this.focus = false;
    (field ?? this.node.querySelector("button")).focus();
  }

  destroy() {
    this.model.off("change:opened", this.changed);
    this.child?.remove?.();
  }
}
