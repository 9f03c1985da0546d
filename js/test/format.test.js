import assert from "node:assert/strict";
import { test } from "node:test";
import { bytes, duration, MISSING, number } from "../src/shared/format.js";
import { luminance } from "../src/shared/theme.js";

test("numbers", () => {
  assert.equal(number(1.23456), "1.235");
  assert.equal(number(0.00012), "1.2e-4");
  assert.equal(number(12345.6), "12,346");
  assert.equal(number(0), "0");
  assert.equal(number(NaN), MISSING);
  assert.equal(number(null), MISSING);
  assert.equal(number(Infinity), "∞");
});

test("bytes", () => {
  assert.equal(bytes(0), MISSING);
  assert.equal(bytes(512), "512 B");
  assert.equal(bytes(1536), "1.5 KiB");
  assert.equal(bytes(14.6 * 2 ** 30), "14.6 GiB");
});

test("durations", () => {
  assert.equal(duration(9.4), "9 s");
  assert.equal(duration(75), "1 min 15 s");
  assert.equal(duration(3 * 3600 + 60), "3 h 1 min");
  assert.equal(duration(50 * 3600), "2 d 2 h");
  assert.equal(duration(null), MISSING);
});

test("a see-through surface counts as light", () => {
  assert.ok(luminance("rgb(255, 255, 255)") > 0.99);
  assert.ok(luminance("rgb(17, 17, 17)") < 0.01);
  assert.equal(luminance("rgba(0, 0, 0, 0)"), 1);
});
