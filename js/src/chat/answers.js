// The tokens of the answers that a page has heard of, shared by the views of one chat.

import { Wishes } from "../shared/wishes.js";

/** A token: [what it adds to the text, its loss, [[another token, its probability], …], whether it is special]. */
export class Answers extends Wishes {
  constructor() {
    super();
    this.known = new Map();
    this.listeners = new Set();
  }

  connect(model) {
    const listen = (content) => content?.t === "tokens" && this.hear(content);
    const end = super.connect(model);
    model.on("msg:custom", listen);
    return () => {
      end();
      model.off("msg:custom", listen);
    };
  }

  /** What is known of the answer at a place of a turn. */
  of(turn, place) {
    return this.known.get(`${turn}:${place}`) ?? [];
  }

  hear({ turn, place, i0, tokens }) {
    const had = this.of(turn, place);
    if (i0 > had.length) return void this.fetch(turn, place); // this page came later
    this.#keep(turn, place, [...had.slice(0, i0), ...tokens]);
  }

  /** Asks for all tokens of an answer: after a reload, or where some are missing. */
  async fetch(turn, place) {
    const { value } = await this.ask("tokens", { turn, place });
    if (value && value.length > this.of(turn, place).length) this.#keep(turn, place, value);
  }

  #keep(turn, place, tokens) {
    this.known.set(`${turn}:${place}`, tokens);
    for (const listener of this.listeners) listener(turn, place);
  }
}
