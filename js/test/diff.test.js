import assert from "node:assert/strict";
import { test } from "node:test";
import { news } from "../src/shared/diff.js";

const marked = (before, after) => news(before, after).filter(([, fresh]) => fresh).map(([word]) => word);

test("what the second says and the first does not is marked, and nothing of it is lost", () => {
  assert.deepEqual(marked("I am a model.", "I am a captain. Ahoy!"), ["captain.", "Ahoy!"]);
  assert.deepEqual(marked("", "all new"), ["all", "new"]);
  assert.deepEqual(marked("the same", "the same"), []);
  for (const after of ["", "a  b\n c", "x ".repeat(900)]) assert.equal(news("a b", after).map(([word]) => word).join(""), after);
});
