// The form of a push: where to, what, private or not, branch or pull request, and the model card.

import { el, setText } from "../shared/dom.js";
import { text } from "../shared/texts.js";
import { Card } from "./card.js";

const NAME = /^[\w.-]+\/[\w.-]+$/;
const quoted = JSON.stringify;

export class Push {
  /**
   * @param {object} model
   * @param {(what: string, values: object, code: string) => Promise<void>} wish sets a wish and shows its line of code
   * @param {() => string[]} types the types of GGUF files that are picked
   * @param {(words: string) => void} complain
   */
  constructor(model, wish, types, complain) {
    Object.assign(this, { model, wish, types, complain });
    this.repo = el("input", { type: "text", placeholder: text("push.example"), spellcheck: "false", autocomplete: "off", size: 22, oninput: () => { this.typed = true; }, onchange: () => this.stale(), onfocus: () => this.wish("who", {}, null) });
    this.what = el("select", { onchange: () => this.stale() }, ...["adapter", "merged", "gguf"].map((value) => el("option", { value }, text(value === "gguf" ? "push.picked" : `push.${value}`))));
    this.secret = el("input", { type: "checkbox", checked: true });
    this.branch = el("input", { type: "text", spellcheck: "false", autocomplete: "off", size: 10 });
    this.request = el("input", { type: "checkbox" });
    this.card = new Card(() => this.askCard());
    this.opener = el("button", { type: "button", class: "nbt-btn", "aria-expanded": "false", onclick: () => this.openCard() }, text("card.title"));
    this.go = el("button", { type: "submit", class: "nbt-btn" }, text("push"));
    const field = (key, input) => el("label", {}, text(key), input), tick = (key, input) => el("label", {}, input, text(key));
    this.node = el("form", { class: "nbt-box", onsubmit: (event) => this.submit(event) }, el("h4", {}, text("export.push")),
      el("div", { class: "nbt-row" }, field("push.repo", this.repo), field("export.what", this.what), tick("push.private", this.secret)),
      el("div", { class: "nbt-row" }, field("push.branch", this.branch), tick("push.pr", this.request), this.opener, this.go), this.card.node);
  }

  /** The account and the run's name are most often what is wanted. */
  greet(account, run) {
    if (account && !this.typed && !this.repo.value) this.repo.value = `${account}/${run.replace(/[^\w.-]+/g, "-").replace(/^[-.]+|[-.]+$/g, "") || "model"}`;
  }

  name() {
    const name = this.repo.value.trim();
    if (NAME.test(name)) return name;
    this.complain(text("push.bad"));
    this.repo.focus();
    return null;
  }

  openCard() {
    if (this.card.node.hidden && !this.name()) return;
    this.complain("");
    this.card.toggle();
    this.opener.setAttribute("aria-expanded", String(!this.card.node.hidden));
  }

  askCard() {
    const repo = this.name();
    if (!repo) return;
    const what = this.what.value;
    this.wish("card", { repo, what }, `print(run.model_card(${quoted(repo)}${what === "adapter" ? "" : `, what=${quoted(what)}`}))`);
  }

  /** Another repository, or something else: the card that is open names it. */
  stale() {
    if (!this.card.node.hidden && NAME.test(this.repo.value.trim())) this.askCard();
  }

  submit(event) {
    event.preventDefault();
    const repo = this.name();
    if (!repo) return;
    const what = this.what.value, types = what === "gguf" ? this.types() : null;
    const values = { repo, what, private: this.secret.checked, types, branch: this.branch.value.trim(), pull_request: this.request.checked, card: this.card.own };
    if (types && !types.length) return this.complain(text("push.types"));
    const more = [what !== "adapter" && `what=${quoted(what)}`, types && `types=[${types.map(quoted).join(", ")}]`, !values.private && "private=False",
      values.branch && `revision=${quoted(values.branch)}`, values.pull_request && "create_pr=True", values.card !== null && `card=${quoted(this.model.get("card_file"))}`];
    return this.wish("push", values, `run.push_to_hub(${[quoted(repo), ...more.filter(Boolean)].join(", ")})`);
  }

  take(card) {
    this.card.take(card);
  }
}

/** For a card that is shown before anything was clicked (a page that is opened again). */
export const opened = (push, card) => {
  if (!card?.text) return;
  push.repo.value = card.repo ?? "";
  if (["adapter", "merged", "gguf"].includes(card.what)) push.what.value = card.what;
  push.card.node.hidden = false;
  push.opener.setAttribute("aria-expanded", "true");
  setText(push.card.changed, "");
};
