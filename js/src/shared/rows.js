// The numbers of a run as columns, of bounded length however long the run is.
//
// A row stands for `count` steps in a row, from raw index `first`. The kernel sends rows of one step each, or, for what
// is long ago, merged ones that keep their extremes. nbtune/widgets/metrics.py is the same in Python.

import MERGED from "../../../nbtune/widgets/columns.json" with { type: "json" };

export const COLUMNS = Object.keys(MERGED);
const [FIRST, COUNT] = ["first", "count"].map((name) => COLUMNS.indexOf(name));
// what stands for two numbers of a column, which are of so many steps
const MERGING = {
  first: (before) => before,
  last: (_, after) => after,
  sum: (before, after) => before + after,
  min: (before, after) => Math.min(before, after),
  max: (before, after) => Math.max(before, after),
  mean: (before, after, a, b) => (before * a + after * b) / (a + b),
};
const MERGES = Object.values(MERGED).map((way) => MERGING[way]);
export const LIMIT = 2048; // more than a chart has pixels

export class Rows {
  constructor() {
    this.clear();
  }

  clear() {
    this.length = 0;
    this.next = 0; // the raw index that comes next
    this.columns = COLUMNS.map(() => new Float64Array(1024));
  }

  /** These rows, with those of `finer` in place of what they cover. */
  with(finer) {
    const made = new Rows();
    if (!finer.length) return this;
    const [low, high] = [finer.columns[FIRST][0], finer.columns[FIRST][finer.length - 1] + finer.columns[COUNT][finer.length - 1]];
    const first = this.column("first");
    let before = 0;
    while (before < this.length && first[before] + this.columns[COUNT][before] <= low) before += 1;
    let after = before;
    while (after < this.length && first[after] < high) after += 1;
    const length = before + finer.length + (this.length - after);
    made.columns = this.columns.map((values, k) => {
      const all = new Float64Array(length);
      all.set(values.subarray(0, before));
      all.set(finer.columns[k].subarray(0, finer.length), before);
      all.set(values.subarray(after, this.length), before + finer.length);
      return all;
    });
    made.length = length;
    made.next = this.next;
    return made;
  }

  /** The filled part of a column: a view, valid until the next `add`. */
  column(name) {
    return this.columns[COLUMNS.indexOf(name)].subarray(0, this.length);
  }

  last(name) {
    return this.length ? this.columns[COLUMNS.indexOf(name)][this.length - 1] : NaN;
  }

  most(name) {
    return Math.max(0, ...this.column(name));
  }

  /** Takes rows that begin anywhere. */
  read(count, values) {
    this.clear();
    if (!count) return this;
    this.next = values[0];
    this.add(count, values);
    return this;
  }

  /**
   * Adds rows, dropping those that are known already.
   * @param {number} count how many rows
   * @param {Float64Array} values column after column
   * @returns {boolean} false if something is missing in between: nothing was added, ask the kernel again
   */
  add(count, values) {
    const column = (k) => values.subarray(k * count, (k + 1) * count);
    let skip = 0;
    while (skip < count && column(FIRST)[skip] + column(COUNT)[skip] <= this.next) skip += 1;
    if (skip === count) return true;
    if (column(FIRST)[skip] !== this.next) return false;
    this.#reserve(this.length + count - skip);
    COLUMNS.forEach((_, k) => this.columns[k].set(column(k).subarray(skip), this.length));
    this.length += count - skip;
    this.next = column(FIRST)[count - 1] + column(COUNT)[count - 1];
    if (this.length > LIMIT) this.#merge(LIMIT / 2);
    return true;
  }

  #reserve(wanted) {
    if (wanted <= this.columns[0].length) return;
    const size = Math.max(wanted, 2 * this.columns[0].length);
    this.columns = this.columns.map((old) => {
      const grown = new Float64Array(size);
      grown.set(old);
      return grown;
    });
  }

  // Rows fall into boxes of a power of two steps, so that a box, once full, never changes and the picture does not jitter.
  #merge(limit) {
    let width = 1;
    while (this.next / width > limit) width *= 2;
    let to = -1;
    let box = -1;
    const [first, count] = [this.columns[FIRST], this.columns[COUNT]];
    for (let i = 0; i < this.length; i += 1) {
      const mine = Math.floor(first[i] / width);
      if (mine !== box) {
        to += 1;
        box = mine;
        for (const values of this.columns) values[to] = values[i];
        continue;
      }
      const [a, b] = [count[to], count[i]];
      this.columns.forEach((values, k) => {
        values[to] = MERGES[k](values[to], values[i], a, b);
      });
    }
    this.length = to + 1;
  }
}

/**
 * A running mean whose memory is counted in steps: `weight` of what was there survives a step. It starts at the first
 * value without a lag (the weights are divided by their sum).
 */
export function smooth(values, counts, weight) {
  const out = new Float64Array(values.length);
  let sum = 0;
  let weights = 0;
  for (let i = 0; i < values.length; i += 1) {
    const keep = weight ** counts[i];
    if (Number.isFinite(values[i])) {
      sum = keep * sum + (1 - keep) * values[i];
      weights = keep * weights + (1 - keep);
    }
    out[i] = weights > 0 ? sum / weights : NaN;
  }
  return out;
}

/** x and y of the raw line: a merged row is drawn from its lowest to its highest value. */
export function extremes(step, low, high, count) {
  const x = [];
  const y = [];
  for (let i = 0; i < step.length; i += 1) {
    x.push(step[i]);
    y.push(low[i]);
    if (count[i] > 1) {
      x.push(step[i]);
      y.push(high[i]);
    }
  }
  return { x, y };
}
