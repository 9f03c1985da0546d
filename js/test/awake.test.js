import assert from "node:assert/strict";
import { test } from "node:test";
import { stayAwake } from "../src/shared/awake.js";

/** A page's model as ipywidgets has it, one as anywidget has it on top, and anywidget's narrow view of that. */
function page(ready) {
  class Plain {
    constructor() { Object.assign(this, { heard: [], sent: [], listeners: new Map(), comm: { on_msg: (listen) => { this.listen = listen; } } }); }
    on(name, call) { this.listeners.set(name, call); }
    off(name) { this.listeners.delete(name); }
    set(name, value) { this.listeners.get(`change:${name}`)?.(this, value); }
    send(content) { this.sent.push(content); }
    _handle_comm_msg(message) { this.heard.push(message.content.data.method); return Promise.resolve(); }
  }
  class Waiting extends Plain {
    async _handle_comm_msg(message) { await ready; return super._handle_comm_msg(message); }
  }
  const own = new Waiting();
  const model = Object.fromEntries(["on", "off", "set", "send"].map((name) => [name, own[name].bind(own)]));
  return { own, model };
}

test("a module that took too long to load hears all the same, and asks for what it missed", async () => {
  const late = Promise.reject(new Error("[anywidget] Failed to initialize model."));
  late.catch(() => {});
  const { own, model } = page(late);
  await stayAwake(model);
  await own.listen({ content: { data: { method: "update" } } });
  assert.deepEqual([own.heard, own.sent, own.listeners.size], [["update"], [{ t: "state?" }], 0]);
});

test("one that was in time is left as it is", async () => {
  const { own, model } = page(Promise.resolve());
  await stayAwake(model);
  assert.deepEqual([own.listen, own.sent], [undefined, []]);
});

test("a page whose models are others is left alone", async () => {
  await stayAwake({ on() {}, off() {}, set() {}, send() { throw new Error("nothing is to be said"); } });
});
