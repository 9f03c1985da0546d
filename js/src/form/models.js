// The second step: which model. A gallery of those that are here and of well-known ones, each with what it needs.

import { el, setAttribute, setText } from "../shared/dom.js";
import { bytes, count } from "../shared/format.js";
import { text } from "../shared/texts.js";

export class ModelStep {
  constructor(form) {
    this.form = form;
    this.gallery = el("div", { class: "nbt-gallery", role: "group", "aria-label": text("form.models") }, ...[1, 2, 3].map(() => el("div", { class: "nbt-skeleton" })));
    const { machines = [] } = form.model.get("setup");
    this.machine = el("select", { onchange: () => this.elsewhere() }, el("option", { value: "" }, text("form.machine.here")), ...machines.map(({ name, title }) => el("option", { value: name }, title)));
    this.away = el("p", { class: "nbt-next", hidden: true });
    this.toy = el("p", { class: "nbt-next", hidden: true }, text("form.toy"));
    this.node = el("div", {}, form.slots.model, el("label", { class: "nbt-machine" }, text("form.machine"), this.machine), this.away, this.gallery, this.toy, form.fields.node("model"));
  }

  /** What fits another machine, and what a run costs there. */
  elsewhere() {
    this.gallery.setAttribute("aria-busy", "true");
    this.form.do("machine", { name: this.machine.value });
  }

  showMachine(name) {
    this.machine.value = name;
    this.away.hidden = !name;
    setText(this.away, text("form.machine.away", { machine: this.title }));
  }

  /** @returns {string} what the machine is called that is not here; "" for this one */
  get title() {
    return this.machine.value && this.machine.selectedOptions[0].textContent;
  }

  show(judged) {
    if (!judged.length) return;
    this.gallery.removeAttribute("aria-busy");
    const groups = [["here", (one) => one.origin !== "known"], ["known", (one) => one.origin === "known"]];
    this.gallery.replaceChildren(...groups.flatMap(([key, wanted]) => {
      const some = judged.filter(wanted);
      return some.length ? [el("small", {}, text(`form.models.${key}`)), ...some.map((one) => this.card(one))] : [];
    }));
    this.mark();
  }

  card(one) {
    const [owner, name] = one.name.includes("/") ? one.name.split(/\/(.*)/) : ["", one.name];
    const facts = [text("form.parameters", { n: count(one.parameters) }), bytes(one.bytes), one.licence, one.gated ? text("form.gated") : ""];
    return el("button", { type: "button", class: "nbt-pick", "data-model": one.name, onclick: () => this.choose(one) },
      el("strong", {}, name), " ", el("small", {}, one.origin === "toy" ? text("form.is-toy") : owner),
      el("small", { class: "nbt-fact" }, facts.filter(Boolean).join(" · ")), el("small", { class: "nbt-fact nbt-fit" }));
  }

  /** Says how a model fits, as it was reckoned for rows of the usual kind; of the chosen one, what its plan says for these rows. */
  judge(card, one) {
    const costs = this.form.model.get("costs");
    const planned = costs.state === "known" && costs.model === one.name;
    const { peak, available } = planned ? costs : one;
    const fits = planned && one.fits === "no" ? "16bit" : one.fits;
    setAttribute(card, "data-fits", fits);
    setText(card.lastChild, text(`form.fits.${fits}`, { where: one.machine ? "" : text("form.fits.here"), peak: bytes(peak), available: bytes(available) }));
  }

  /** A model that only fits with 4 bits is chosen with them. */
  choose({ name, fits }) {
    const { fields } = this.form;
    fields.put("model", name);
    if (fits === "4bit") fields.put("adapter.type", "qlora");
    else if (this.bits) fields.put("adapter.type", "");
    this.bits = fits === "4bit";
    this.mark();
    this.form.check();
  }

  mark() {
    const now = this.form.fields.get("model");
    for (const one of this.form.model.get("judged")) {
      const card = this.gallery.querySelector(`[data-model=${CSS.escape(one.name)}]`);
      if (!card) continue;
      setAttribute(card, "aria-pressed", String(one.name === now));
      this.judge(card, one);
    }
    this.toy.hidden = now !== "nbtune/tiny";
  }
}
