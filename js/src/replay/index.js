// A run in one file, without a kernel: the monitor on its last picture, the answers step by step, some rows with what was
// trained, the plan beside what was measured. All of it stands in the page (nbtune/widgets/replay.py writes it).

import { TokenPage } from "../inspector/tokens.js";
import "../inspector/texts.js";
import monitor from "../monitor/index.js";
import { marked } from "../shared/diff.js";
import { el } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text, TABLES } from "../shared/texts.js";
import { followTheme } from "../shared/theme.js";
import "./texts.js";

const bytesOf = (base64) => Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));

/** What a panel takes for its widget: the picture that was kept, and of the kernel nothing but Plotly. */
class Kept {
  constructor(state, plotly) {
    Object.assign(this, { state, plotly, heard: new Set() });
  }

  get(name) {
    return this.state[name];
  }

  on(name, call) {
    if (name === "msg:custom") this.heard.add(call);
  }

  off(_name, call) {
    this.heard.delete(call);
  }

  send(content) {
    if (content.t !== "plotly?") return;
    const bytes = bytesOf(this.plotly());
    setTimeout(() => [...this.heard].forEach((call) => call({ t: "plotly" }, [new DataView(bytes.buffer)])));
  }
}

function showMonitor(kept, plotly, host) {
  const picture = bytesOf(kept.steps);
  const model = new Kept({ snapshot: kept.snapshot, snapshot_rows: new DataView(picture.buffer), finish: "", opened: {} }, plotly);
  const { initialize, render } = monitor();
  initialize({ model });
  render({ model, el: host });
  // what needs a kernel, or is told better below
  for (const part of host.querySelectorAll(".nbt-controls, .nbt-beside")) part.remove();
}

/** The answers of one step beside the first ones; the step is chosen. */
function answers(samples) {
  const steps = [...new Set(samples.map(({ step }) => step))].sort((a, b) => a - b);
  const said = new Map(samples.map(({ step, prompt, answer }) => [`${step} ${prompt}`, answer]));
  const prompts = [...new Set(samples.map(({ prompt }) => prompt))];
  const last = steps.length - 1;
  const when = el("output", {});
  const range = el("input", { type: "range", min: 0, max: last, step: 1, oninput: () => show(Number(range.value)) });
  const table = el("table");
  const cell = (...words) => el("td", { class: "nbt-text", dir: "auto" }, ...words);
  const show = (k) => {
    const [first, now] = [steps[0], steps[k]];
    when.textContent = number(now);
    range.setAttribute("aria-valuetext", `${text("replay.step")} ${number(now)}`);
    const head = [text("replay.question"), text("replay.first"), text("replay.then", { step: number(now) })];
    table.replaceChildren(el("tr", {}, ...head.map((name) => el("th", { scope: "col" }, name))),
      ...prompts.map((prompt) => {
        const [before, after] = [first, now].map((step) => said.get(`${step} ${prompt}`) ?? "");
        return el("tr", {}, el("th", { scope: "row", class: "nbt-text", dir: "auto" }, prompt), cell(before), cell(...(k ? marked(before, after) : [after])));
      }));
  };
  range.value = last;
  show(last);
  return [el("div", { class: "nbt-row" }, el("label", {}, text("replay.step"), range), when), el("div", { class: "nbt-scroll", tabindex: 0 }, table)];
}

/** A row's tokens as the inspector shows them; deeper where the loss is higher. */
function rows(kept) {
  return kept.map((row, k) => {
    const page = new TokenPage(() => {});
    page.show(row);
    const losses = row.losses ?? [];
    const most = Math.max(1e-6, ...losses.filter(Number.isFinite));
    for (const [n, node] of [...page.page.children].entries()) {
      if (!Number.isFinite(losses[n])) continue;
      node.style.background = `color-mix(in srgb, var(--nbt-warn) ${Math.round((45 * losses[n]) / most)}%, transparent)`;
      node.style.color = "var(--nbt-fg)";
    }
    const shade = losses.some(Number.isFinite) ? el("p", { class: "nbt-soft" }, text("replay.losses")) : null;
    return el("details", k === 0 ? { open: true } : {}, el("summary", { class: "nbt-text", dir: "auto" }, row.place), page.node, shade);
  });
}

const lines = (facts) => el("table", {},
  el("tr", {}, ...["what", "planned", "measured"].map((key) => el("th", { scope: "col" }, text(`replay.${key}`)))),
  ...facts.map(([what, ...values]) => el("tr", {}, el("th", { scope: "row" }, what), ...values.map((value) => el("td", {}, value)))));

const part = (key, ...inner) => el("section", { class: "nbt", "data-part": key, "aria-label": text(`replay.${key}`) }, el("h2", {}, text(`replay.${key}`)), ...inner);

const folded = (key, shown) => (shown ? part(key, el("pre", { tabindex: 0, dir: "auto" }, shown)) : null);

/**
 * @param {HTMLElement} host
 * @param {any} kept what replay.py wrote
 * @param {() => string} plotly Plotly's module, gzipped, in base64
 */
export function replay(host, kept, plotly) {
  const wanted = navigator.language.split("-")[0];
  document.documentElement.lang = wanted in TABLES ? wanted : "en";
  const live = el("div", { "data-part": "monitor" });
  host.append(el("p", { class: "nbt-soft" }, text("replay.no_kernel")), live, ...[
    kept.samples.length ? part("samples", ...answers(kept.samples)) : null,
    kept.rows.length ? part("rows", ...rows(kept.rows)) : null,
    kept.plan.length ? part("plan", el("div", { class: "nbt-scroll", tabindex: 0 }, lines(kept.plan))) : null,
    folded("why", kept.why), folded("spec", kept.spec), folded("use", kept.use),
  ].filter(Boolean));
  for (const section of host.querySelectorAll("section.nbt")) followTheme(section);
  showMonitor(kept, plotly, live);
}

const find = (id) => document.getElementById(id);
if (find("nbtune-kept")) replay(find("nbtune-replay"), JSON.parse(find("nbtune-kept").textContent), () => find("nbtune-plotly").textContent);
