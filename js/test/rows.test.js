import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { COLUMNS, extremes, LIMIT, Rows, smooth } from "../src/shared/rows.js";

/** Rows of one step each, as the kernel sends them: column after column. */
function raw(first, losses) {
  const row = (k) => ({ first: first + k, count: 1, step: first + k + 1, loss: losses[k], loss_min: losses[k], loss_max: losses[k] });
  return Float64Array.from(COLUMNS.flatMap((name) => losses.map((_, k) => row(k)[name] ?? 0)));
}

test("rows are appended, overlaps dropped, gaps refused", () => {
  const rows = new Rows();
  assert.equal(rows.add(3, raw(0, [5, 4, 3])), true);
  assert.equal(rows.add(3, raw(1, [4, 3, 2])), true);
  assert.deepEqual([...rows.column("loss")], [5, 4, 3, 2]);
  assert.equal(rows.add(1, raw(9, [1])), false);
  assert.equal(rows.next, 4);
  assert.equal(rows.add(2, raw(0, [5, 4])), true);
  assert.equal(rows.length, 4);
});

test("a merged row that begins before what is known is a gap, not an overlap", () => {
  const rows = new Rows();
  rows.add(3, raw(0, [5, 4, 3]));
  const wide = raw(2, [3]);
  wide[1] = 4; // count
  assert.equal(rows.add(1, wide), false);
});

test("a long run stays short and keeps its extremes and its mean", () => {
  const rows = new Rows();
  const losses = Array.from({ length: 100_000 }, (_, k) => Math.sin(k / 50));
  losses[33_333] = 99;
  losses[66_666] = -99;
  for (let k = 0; k < losses.length; k += 500) rows.add(500, raw(k, losses.slice(k, k + 500)));
  assert.ok(rows.length <= LIMIT);
  assert.equal(rows.next, 100_000);
  assert.equal(Math.max(...rows.column("loss_max")), 99);
  assert.equal(Math.min(...rows.column("loss_min")), -99);
  const [loss, count] = [rows.column("loss"), rows.column("count")];
  const sum = loss.reduce((total, value, k) => total + value * count[k], 0);
  assert.ok(Math.abs(sum - losses.reduce((a, b) => a + b)) < 1e-6);
  assert.equal(count.reduce((a, b) => a + b), 100_000);
});

test("smoothing has no lag at the start, and knows how many steps a row stands for", () => {
  assert.equal(smooth([3, 3, 3], [1, 1, 1], 0.9)[0], 3);
  assert.deepEqual([...smooth([1, 2, 4], [1, 1, 1], 0)], [1, 2, 4]);
  const long = smooth([0, 1], [1, 1000], 0.9)[1];
  assert.ok(long > 0.999, String(long));
  assert.equal(smooth([1, NaN, 1], [1, 1, 1], 0.9)[2], 1);
});

test("a merged row is drawn from its lowest to its highest value", () => {
  assert.deepEqual(extremes([1, 8], [2, 1], [2, 9], [1, 7]), { x: [1, 8, 8], y: [2, 1, 9] });
});

test("what is looked at closely takes the place of the merged rows it covers", () => {
  const rows = new Rows();
  for (let k = 0; k < 8192; k += 512) rows.add(512, raw(k, Array.from({ length: 512 }, (_, i) => k + i)));
  assert.ok(rows.column("count")[0] > 1);
  const first = rows.column("first")[3];
  const finer = new Rows().read(100, raw(first, Array.from({ length: 100 }, (_, i) => first + i)));
  const drawn = rows.with(finer);
  const steps = [...drawn.column("first")];
  assert.deepEqual(steps, [...new Set(steps)].sort((a, b) => a - b));
  assert.ok(drawn.column("count").filter((count) => count === 1).length >= 100);
  assert.equal(drawn.next, rows.next);
  assert.equal(rows.with(new Rows()), rows);
});

test("a chart asks for no column that there is not", () => {
  const source = readFileSync(new URL("../src/monitor/charts.js", import.meta.url), "utf8");
  const asked = [...source.matchAll(/this\.column === "(\w+)"/g)].map(([, name]) => name);
  assert.ok(asked.length);
  assert.deepEqual(asked.filter((name) => !COLUMNS.includes(name)), []);
});
