// Lengths of the examples as bars, with the line where they are cut.

import { el } from "../shared/dom.js";
import { number } from "../shared/format.js";
import { text } from "../shared/texts.js";

/** @param {{ lengths?: [number, number][], max_len: number, longest?: number }} summary */
export function histogram({ lengths = [], max_len: cut, longest = 0 }) {
  if (!lengths.length) return [];
  const most = Math.max(...lengths.map(([, count]) => count));
  const width = 100 / lengths.length;
  const bars = lengths.map(([bound, count], k) => {
    const height = Math.max(1, (96 * count) / most);
    return el("rect", { x: k * width + 0.6, y: 100 - height, width: width - 1.2, height },
      el("title", {}, text("inspect.bar", { count: number(count), bound: number(bound) })));
  });
  const said = lengths.map(([bound, count]) => text("inspect.bar", { count: number(count), bound: number(bound) })).join("; ");
  const at = cutAt(lengths.map(([bound]) => bound), cut);
  const line = at === null ? [] : [el("line", { class: "nbt-cut", x1: 100 * at, x2: 100 * at, y1: 0, y2: 100, "vector-effect": "non-scaling-stroke" })];
  return [
    el("div", { class: "nbt-soft", style: "font-size:.92em" }, text("inspect.lengths") + text("inspect.most", { n: number(most) })),
    el("svg", { class: "nbt-bars", viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img", "aria-label": `${text("inspect.lengths")}: ${said}` }, ...bars, ...line),
    el("div", { class: "nbt-axis" }, el("span", {}, `≤ ${number(lengths[0][0])}`),
      el("span", {}, `≤ ${number(lengths.at(-1)[0])}`)),
    el("div", { class: longest > cut ? "nbt-bad" : "nbt-soft", style: "font-size:.88em" }, text(longest > cut ? "inspect.cut" : "inspect.uncut", { n: number(cut) })),
  ];
}

/** Where a length lies among bars of these upper bounds, 0..1; null beyond the last one. */
export function cutAt(bounds, cut) {
  const k = bounds.findIndex((bound) => bound >= cut);
  if (k < 0) return null;
  const low = k ? bounds[k - 1] : 0;
  return (k + (cut - low) / (bounds[k] - low)) / bounds.length;
}
