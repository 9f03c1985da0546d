// Asks the kernel to do something; the answer comes as a message with the same id.

import { text } from "./texts.js";

/** Sends a message. @returns {boolean} false: the kernel that the panel belongs to was restarted or is gone (Jupyter then throws). */
export function tell(model, content, buffers = []) {
  try {
    model.send(content, undefined, buffers);
    return true;
  } catch {
    return false;
  }
}

export class Wishes {
  constructor() {
    this.answers = new Map();
  }

  connect(model) {
    this.model = model;
    const listen = (content) => content?.t === "ack" && this.answers.get(content.id)?.(content);
    model.on("msg:custom", listen);
    return () => model.off("msg:custom", listen);
  }

  /** @returns {Promise<{ value?: any, error?: string }>} kept when the kernel has answered, or cannot */
  ask(what, values = {}, buffers = []) {
    const id = `${Date.now()}-${Math.random()}`;
    return new Promise((resolve) => {
      this.answers.set(id, (answer) => {
        this.answers.delete(id);
        resolve(answer);
      });
      if (!tell(this.model, { t: "do", id, do: what, ...values }, buffers)) this.answers.get(id)({ error: text("gone") });
    });
  }
}
