import assert from "node:assert/strict";
import { test } from "node:test";
import { unitOf } from "../src/form/fields.js";

test("a field has its unit, unless its title says it as a word", () => {
  const units = [["Steps", "steps"], ["Minutes", "minutes"], ["Rewards: limit", "s"], ["Batch size", "rows"], ["Seed", ""]];
  assert.deepEqual(units.map(([title, unit]) => unitOf({ title, unit })), ["", "", "s", "rows", ""]);
});
