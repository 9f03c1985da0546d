import assert from "node:assert/strict";
import { test } from "node:test";
import { Wishes } from "../src/shared/wishes.js";

const model = (send) => ({ send, on() {}, off() {} });

test("the answer with the same id is the answer", async () => {
  const wishes = new Wishes(), sent = [];
  let hear;
  wishes.connect({ ...model((content) => sent.push(content)), on: (_, listen) => { hear = listen; } });
  const answer = wishes.ask("stop", { save: true });
  hear({ t: "ack", id: sent[0].id, value: 3 });
  assert.deepEqual([(await answer).value, sent[0].do, sent[0].save], [3, "stop", true]);
});

test("a kernel that is gone is an answer in words", async () => {
  const wishes = new Wishes();
  wishes.connect(model(() => { throw new Error("Cannot send"); }));
  assert.match((await wishes.ask("stop")).error, /kernel/i);
  assert.equal(wishes.answers.size, 0);
});
