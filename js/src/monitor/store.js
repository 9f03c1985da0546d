// What a page knows of a run: filled from the saved snapshot, then by messages. One per model, shared by its views.

import { Rows } from "../shared/rows.js";
import { tell, Wishes } from "../shared/wishes.js";

const LISTS = ["evals", "notes", "samples", "exports", "checkpoints", "machine", "metrics", "abilities", "slowed"];
const MOST = 480; // of what comes every second: then every other one is forgotten

export class Store {
  constructor() {
    this.rows = new Rows();
    this.status = {};
    this.forget();
    this.listeners = new Set();
    this.heard = Date.now();
    this.views = new Map(); // of each view: whether somebody sees it
    this.page = `${Date.now()}-${Math.random()}`;
    this.wishes = new Wishes();
  }

  /** Starts from the model's snapshot and listens; returns a function that ends it. */
  connect(model) {
    this.model = model;
    this.read(model.get("snapshot"), model.get("snapshot_rows"));
    const onMessage = (content, buffers) => this.receive(content, buffers);
    const onSnapshot = () => this.read(model.get("snapshot"), model.get("snapshot_rows"));
    const end = this.wishes.connect(model);
    model.on("msg:custom", onMessage);
    model.on("change:snapshot", onSnapshot);
    return () => {
      end();
      model.off("msg:custom", onMessage);
      model.off("change:snapshot", onSnapshot);
    };
  }

  /** Says to the kernel whether somebody sees the panel in this page; at once if so, else when it stays so. */
  see(view, seen) {
    if (seen === undefined) this.views.delete(view);
    else this.views.set(view, seen);
    clearTimeout(this.looksAway);
    const now = [...this.views.values()].some(Boolean) && !document.hidden;
    if (now) this.tellSeen(true);
    else this.looksAway = setTimeout(() => this.tellSeen(false), 500);
  }

  tellSeen(seen) {
    if (seen === this.seen) return;
    this.seen = seen;
    this.heard = Date.now();
    tell(this.model, { t: "seen", page: this.page, seen });
  }

  /** A whole picture: what came before is forgotten, unless we already know more. */
  read(snapshot, buffer) {
    if (!snapshot || snapshot.next === undefined) return;
    const same = snapshot.generation === this.generation;
    if (same && !this.gap && this.rows.next > 0 && snapshot.next <= this.rows.next) return;
    this.forget();
    this.gap = false;
    this.generation = snapshot.generation;
    this.apply(snapshot, buffer);
  }

  /** The rows as a chart draws them: what somebody looks at closely in full, the rest as it is kept. */
  get drawn() {
    return this.finer ? this.rows.with(this.finer) : this.rows;
  }

  /** Somebody looks at the steps from `low` to `high`: asks for them where only merged ones are here. */
  look(low, high) {
    const [step, count] = [this.rows.column("step"), this.rows.column("count")];
    if (step.some((value, k) => count[k] > 1 && value >= low && value <= high)) tell(this.model, { t: "range", low, high });
  }

  forget() {
    this.finer = null;
    this.rows.clear();
    this.ends = {}; // of each list: how many items the run has said so far
    for (const name of LISTS) this[name] = [];
  }

  receive(content, buffers) {
    this.heard = Date.now();
    if (content.t === "d") this.apply(content, buffers[0]);
    else if (content.t === "s") this.read(content, buffers[0]);
    else if (content.t === "r" && content.generation === this.generation) this.finer = new Rows().read(content.rows, floats(buffers[0]));
    this.changed();
  }

  apply(content, buffer) {
    if (content.generation !== this.generation) return this.ask();
    const values = content.rows ? floats(buffer) : new Float64Array(0);
    let whole = this.rows.add(content.rows ?? 0, values);
    for (const name of LISTS) whole = this.merge(name, content[name]) && whole;
    this.status = content.status;
    this.stamped = Date.now();
    if (!whole) this.ask();
    this.changed();
  }

  /** Takes a list's news: the whole of it, or what came after item `i0`; false if something in between is missing. */
  merge(name, part) {
    if (!part) return true;
    const end = this.ends[name] ?? 0;
    if (part.whole) this[name] = part.items;
    else if (part.i0 > end) return false;
    else this[name] = [...this[name], ...part.items.slice(end - part.i0)];
    if (this[name].length > MOST) this[name] = this[name].filter((_, k, all) => (all.length - k) % 2 === 1);
    this.ends[name] = Math.max(end, part.next);
    return true;
  }

  /** Something is missing (or the run went back to a checkpoint): asks for a whole picture, at most once a second. */
  ask() {
    this.gap = true;
    if (Date.now() - (this.asked ?? 0) < 1000) return;
    this.asked = Date.now();
    tell(this.model, { t: "need" });
  }

  changed() {
    for (const listener of this.listeners) listener();
  }
}

/** A DataView of a message (which may lie anywhere) as doubles. */
export function floats(view) {
  if (!view) return new Float64Array(0);
  const start = view.byteOffset ?? 0;
  return new Float64Array((view.buffer ?? view).slice(start, start + view.byteLength));
}
