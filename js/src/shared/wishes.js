// Asks the kernel to do something; the answer comes as a message with the same id.

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

  /** @returns {Promise<{ value?: any, error?: string }>} kept when the kernel has answered */
  ask(what, values = {}, buffers = []) {
    const id = `${Date.now()}-${Math.random()}`;
    return new Promise((resolve) => {
      this.answers.set(id, (answer) => {
        this.answers.delete(id);
        resolve(answer);
      });
      this.model.send({ t: "do", id, do: what, ...values }, undefined, buffers);
    });
  }
}
