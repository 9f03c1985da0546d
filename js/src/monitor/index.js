// The monitor: a run as it happens. Events come as columns of doubles, at most four times a second.

import { coded, el, setAttribute, setText } from "../shared/dom.js";
import { bytes, duration, MISSING, number } from "../shared/format.js";
import { insertCell } from "../shared/insert.js";
import { Nested } from "../shared/nested.js";
import { panel } from "../shared/panel.js";
import { loadPlotly } from "../shared/plotly.js";
import { smooth } from "../shared/rows.js";
import { text } from "../shared/texts.js";
import { readTheme, watchTheme } from "../shared/theme.js";
import { tell } from "../shared/wishes.js";
import { Beside } from "./beside.js";
import { LossChart, SmallChart } from "./charts.js";
import { Controls } from "./controls.js";
import { Abilities, Checkpoints, Memory, Notes, Samples, Table } from "./lists.js";
import { BusyChart, MemoryChart } from "./machine.js";
import { figuresOf, KINDS, MethodChart } from "./method.js";
import { Store } from "./store.js";

const SMALL = [
  ["learning_rate", "rate"],
  ["tokens_per_second", "speed"],
  ["memory", "memory"],
  ["grad_norm", "text"],
];

class View {
  constructor(store, model) {
    Object.assign(this, { store, model, smoothing: 0.8, log: false, clip: false, visible: true });
    this.parts = this.build();
    this.end = [
      watchTheme(() => this.retheme()),
      this.watchSize(),
      () => store.listeners.delete(this.onChange),
      this.watchFinish(),
    ];
    this.onChange = () => this.schedule();
    store.listeners.add(this.onChange);
    this.ticking = setInterval(() => this.tick(), 1000);
    loadPlotly(model).then(
      (plotly) => { this.plotly = plotly; this.schedule(); },
      () => { this.parts.noPlotly.hidden = false; },
    );
  }

  build() {
    const parts = {
      name: el("span", { class: "nbt-name", dir: "auto" }),
      state: el("span", { class: "nbt-state" }),
      progress: el("span", { class: "nbt-soft" }),
      detail: el("span", { class: "nbt-soft nbt-text" }),
      bar: el("div"),
      speech: el("div", { class: "nbt-sr", "aria-live": "polite" }),
      noPlotly: el("p", { class: "nbt-soft", hidden: true }, text("no_plotly")),
      silent: el("div", { class: "nbt-row nbt-warn", hidden: true }, el("span"), el("button", { type: "button", class: "nbt-btn nbt-main", "data-do": "again", onclick: () => this.again() }, text("again"))),
      finish: el("div", { hidden: true }),
      loss: new LossChart((low, high) => this.store.look(low, high)),
      small: SMALL.map(([column, colour]) => new SmallChart(column, colour)),
      captions: SMALL.map(() => el("figcaption")),
      stacked: new MemoryChart(),
      busy: new BusyChart(),
      busyCaption: el("figcaption"),
      method: Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, new MethodChart()])),
      controls: new Controls(this.store),
      notes: new Notes(),
      samples: new Samples(),
      memory: new Memory(),
      abilities: new Abilities(),
      table: new Table(),
    };
    parts.beside = new Beside(this.model, () => parts.controls.leave());
    parts.controls.beside = parts.beside;
    parts.checkpoints = new Checkpoints((step) => parts.controls.do("resume", `run.resume(step=${step})`, { step }));
    const keys = ["loss", "eval", "speed", "memory", "elapsed", "eta"];
    parts.tiles = Object.fromEntries(keys.map((key) => [key, el("div", { class: "nbt-value" })]));
    const tile = (key, label) => el("div", { class: "nbt-tile" }, el("div", { class: "nbt-soft" }, label), parts.tiles[key]);
    parts.memoryLabel = el("span");
    this.root = el("section", { class: "nbt nbt-monitor", "data-lm-suppress-shortcuts": "true", role: "region" },
      el("div", { class: "nbt-head" }, parts.name, parts.state, parts.progress, parts.detail),
      el("div", { class: "nbt-bar", "aria-hidden": "true" }, parts.bar),
      parts.speech, parts.silent, parts.finish, parts.controls.node, parts.beside.node,
      el("div", { class: "nbt-tiles" },
        tile("loss", text("loss")), tile("eval", text("eval")), tile("speed", text("speed")),
        tile("memory", parts.memoryLabel), tile("elapsed", text("elapsed")), tile("eta", text("eta"))),
      parts.loss.node, parts.noPlotly, this.options(),
      el("div", { class: "nbt-small" }, ...parts.small.map((chart, k) => el("figure", {}, parts.captions[k], chart.node, SMALL[k][0] === "memory" ? parts.stacked.node : null)),
        ...Object.values(parts.method).map((chart) => el("figure", { hidden: true }, chart.caption, chart.node)),
        el("figure", { hidden: true }, parts.busyCaption, parts.busy.node, parts.busy.words)),
      parts.notes.node, parts.samples.node, parts.checkpoints.node,
      parts.memory.node, parts.abilities.node, parts.table.node);
    return parts;
  }

  options() {
    const redraw = (change) => (event) => { change(event.target); this.schedule(); };
    const check = (name) => el("label", {},
      el("input", { type: "checkbox", onchange: redraw((node) => { this[name] = node.checked; }) }), text(name));
    return el("div", { class: "nbt-row nbt-soft" },
      el("label", {}, text("smoothing"), el("input", {
        type: "range", min: 0, max: 0.99, step: 0.01, value: this.smoothing,
        oninput: redraw((node) => { this.smoothing = Number(node.value); }),
      })), check("log"), check("clip"));
  }

  watchSize() {
    const resized = new ResizeObserver((entries) => {
      for (const chart of this.charts()) if (entries.some(({ target }) => target === chart.node)) chart.resize();
      this.schedule();
    });
    for (const chart of this.charts()) resized.observe(chart.node); // also of one that was hidden
    const seen = new IntersectionObserver((entries) => {
      this.visible = entries.at(-1).isIntersecting;
      this.store.see(this, this.visible);
      if (this.visible && this.dirty) this.schedule();
    });
    seen.observe(this.root);
    const turned = () => this.store.see(this, this.visible);
    document.addEventListener("visibilitychange", turned);
    return () => {
      resized.disconnect();
      seen.disconnect();
      document.removeEventListener("visibilitychange", turned);
      this.store.see(this, undefined);
    };
  }

  /** The card of a run that has ended: a widget of its own. */
  watchFinish() {
    const nested = new Nested(this.model, this.parts.finish);
    const show = async () => {
      const id = this.model.get("finish") ?? "";
      this.parts.finish.hidden = !id;
      if ((await nested.show(id)) === false) this.parts.finish.hidden = true;
    };
    this.model.on("change:finish", show);
    show();
    return () => {
      this.model.off("change:finish", show);
      nested.drop();
    };
  }

  /** The kernel is gone: a cell that goes on in the one that is there now. */
  async again() {
    const code = `%load_ext nbtune\n%nbtune resume ${this.store.status.folder}`;
    const inserted = insertCell(this.model, this.root, code);
    if (!inserted) await navigator.clipboard.writeText(code);
    this.said = text(inserted ? "again.inserted" : "again.copied");
    this.tick();
  }

  retheme() {
    this.theme = null;
    this.schedule();
  }

  /** Asks for one paint before the next frame; nothing is done while nobody looks. */
  schedule() {
    this.dirty = true;
    if (this.frame || !this.visible) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = null;
      if (!this.root.isConnected) return;
      this.dirty = false;
      this.paint();
    });
  }

  paint() {
    if (!this.theme) {
      this.theme = readTheme(this.root);
      this.root.classList.toggle("nbt-dark", this.theme.dark);
      this.theme = readTheme(this.root);
    }
    const rows = this.store.drawn;
    const smoothed = smooth(rows.column("loss"), rows.column("count"), this.smoothing);
    this.paintHead(smoothed);
    this.paintCharts(rows, smoothed);
    this.parts.controls.update();
    this.parts.notes.update(this.store);
    this.parts.samples.update(this.store);
    this.parts.checkpoints.update(this.store);
    this.parts.memory.update(this.store);
    this.parts.abilities.update(this.store);
    this.parts.table.update(this.store);
    this.painted();
  }

  paintHead(smoothed) {
    const { parts, store } = this;
    const { status, rows, evals } = store;
    const state = text(`state.${status.state}`);
    const values = { step: number(status.step), total: number(status.total) };
    setAttribute(this.root, "aria-label", text("run", { name: status.name ?? "" }));
    setText(parts.name, status.name ?? "");
    setText(parts.state, state);
    setAttribute(parts.state, "data-state", status.state ?? "");
    setText(parts.progress, status.total ? text("step_of", values) : status.step ? text("step", values) : "");
    parts.detail.replaceChildren(...coded(status.detail));
    parts.bar.style.width = `${status.total ? (100 * status.step) / status.total : 0}%`;
    const best = evals.findLast((item) => item.best);
    parts.tiles.loss.replaceChildren(number(rows.last("loss")), el("small", {}, `${text("loss.smooth")} ${number(smoothed.at(-1))}`));
    parts.tiles.eval.replaceChildren(evals.length ? number(evals.at(-1).loss) : MISSING,
      best ? el("small", {}, `${text("loss.best")} ${number(best.loss)}`) : "");
    setText(parts.tiles.speed, number(rows.last("tokens_per_second"), 3));
    parts.tiles.memory.replaceChildren(bytes(rows.most("memory")),
      status.memory_total ? el("small", {}, text("of", { whole: bytes(status.memory_total) })) : "");
    setText(parts.memoryLabel, `${text(status.vram ? "memory.gpu" : "memory.cpu")}, ${text("memory.most")}`);
    this.paintClock();
    const tenth = status.total ? Math.floor((10 * status.step) / status.total) : 0;
    const spoken = `${status.state}-${tenth}`;
    if (spoken !== this.spoken) {
      this.spoken = spoken;
      setText(parts.speech, text("speech", { name: status.name ?? "", state, ...values, loss: number(smoothed.at(-1)) }));
    }
  }

  paintClock() {
    const { status } = this.store;
    const since = status.live && status.state !== "paused" ? (Date.now() - this.store.stamped) / 1000 : 0;
    setText(this.parts.tiles.elapsed, duration(status.elapsed + since));
    this.parts.tiles.eta.parentNode.hidden = status.live === false;
    setText(this.parts.tiles.eta, status.live && status.eta !== null ? duration(Math.max(0, status.eta - since)) : MISSING);
  }

  paintCharts(rows, smoothed) {
    const { parts, store, theme, plotly } = this;
    const { evals } = store;
    parts.loss.update(plotly, { rows, evals }, smoothed, theme, this);
    const last = evals.length ? number(evals.at(-1).loss) : MISSING;
    parts.loss.describe(text("chart.loss", { loss: number(rows.last("loss")), smooth: number(smoothed.at(-1)), eval: last }));
    // The loss comes first; the small charts have the frame after it.
    cancelAnimationFrame(this.smallFrame);
    this.smallFrame = requestAnimationFrame(() => this.paintSmall());
  }

  paintSmall() {
    if (!this.theme) return; // it has just changed: a paint of everything is on its way
    const { parts, store, theme, plotly } = this;
    const { status, rows } = store;
    const names = [text("rate"), text("speed"), `${text(status.vram ? "memory.gpu" : "memory.cpu")} (GiB)`, text("grad")];
    const planned = (status.memory_plan ?? []).reduce((sum, [, size]) => sum + size, 0);
    parts.small.forEach((chart, k) => {
      const unit = chart.column === "memory" ? 1024 ** 3 : 1;
      setText(parts.captions[k], names[k]);
      if (chart.column === "memory") {
        const split = store.machine.length > 0; // older runs tell one number only
        chart.node.hidden = split;
        parts.stacked.node.hidden = !split;
        if (split) return parts.stacked.update(plotly, store, theme, names[k], planned);
      }
      chart.update(plotly, store, theme, names[k], { unit, ceiling: chart.column === "memory" ? planned : 0 });
      chart.describe(text("chart.other", { name: names[k], value: number(rows.last(chart.column) / unit) }));
    });
    this.paintMethod();
    this.paintBusy();
  }

  paintMethod() {
    const { parts, store, theme, plotly } = this;
    for (const [kind, names] of Object.entries(figuresOf(store.metrics))) {
      const chart = parts.method[kind];
      chart.node.parentNode.hidden = !names.length;
      if (!names.length) continue;
      if (chart.width < 100) chart.resize();
      chart.update(plotly, store, theme, text(`metrics.${kind}`), names, kind === "shares");
    }
  }

  paintBusy() {
    const { parts, store, theme, plotly } = this;
    const name = text(store.status.gpu ? "busy.gpu" : "busy.cpu");
    parts.busy.node.parentNode.hidden = !store.machine.some((item) => item.busy !== null);
    if (parts.busy.node.parentNode.hidden) return;
    setText(parts.busyCaption, name);
    parts.busy.update(plotly, store, theme, name);
  }

  /** Says to whoever measures what has just become visible (the next task runs after the frame). */
  painted() {
    setAttribute(this.root, "data-points", String(this.store.rows.next));
    setAttribute(this.root, "data-plotly", String(Boolean(this.plotly)));
    const probe = globalThis[Symbol.for("nbtune.probe")];
    if (!probe) return;
    const seen = { points: this.store.rows.next, time: this.store.rows.last("time"), plotly: Boolean(this.plotly) };
    const channel = new MessageChannel();
    channel.port1.onmessage = () => { probe(seen); channel.port1.close(); };
    channel.port2.postMessage(0);
  }

  tick() {
    if (!this.visible || !this.root.isConnected || document.hidden) return;
    this.paintClock();
    const { status, heard } = this.store;
    const quiet = (Date.now() - heard) / 1000;
    const silent = status.live && status.beat > 0 && quiet > Math.max(10, 2.5 * status.beat);
    const gone = silent && (this.gone || !tell(this.model, { t: "hello" }));
    this.gone = gone;
    this.parts.silent.hidden = !silent;
    this.parts.controls.node.hidden = gone; // one thing is to be done
    if (!silent) this.said = "";
    else setText(this.parts.silent.firstChild, this.said || (gone ? text("silent.gone") : text("silent", { time: duration(quiet) })));
  }

  destroy() {
    clearInterval(this.ticking);
    cancelAnimationFrame(this.frame);
    cancelAnimationFrame(this.smallFrame);
    for (const end of this.end) end();
    this.parts.beside.destroy();
    for (const chart of this.charts()) chart.destroy();
  }

  charts() {
    return [this.parts.loss, ...this.parts.small, this.parts.stacked, this.parts.busy, ...Object.values(this.parts.method)];
  }
}

export default panel((model, store) => new View(store, model), () => new Store());
