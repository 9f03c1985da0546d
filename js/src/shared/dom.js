// Elements from plain calls. Text only ever becomes a text node: nothing that comes from a kernel is read as HTML.

const SVG = "http://www.w3.org/2000/svg";
const SVG_TAGS = new Set(["svg", "path", "polyline", "circle", "line", "rect", "title"]);

/**
 * el("button", { class: "nbt-btn", onclick: f, "aria-pressed": true }, "Pause")
 * @param {string} tag
 * @param {Record<string, any>} [props] attributes; `on…` are listeners, `null` and `false` leave one out
 * @param {...(Node | string | number | null)} children
 */
export function el(tag, props = {}, ...children) {
  const node = SVG_TAGS.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(props)) set(node, name, value);
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

export function set(node, name, value) {
  if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
  else if (name === "value") node.value = value;
  else if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else node.setAttribute(name, value === true ? "" : value);
}

/** Writes only what changed, so that a screen reader and the layout are left in peace. */
export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) node.setAttribute(name, value);
}

/** A sentence with `names` in it: these become code. */
export const coded = (sentence) => String(sentence ?? "").split(/`([^`\n]{1,400})`/).map((part, k) => (k % 2 ? el("code", {}, part) : part)).filter((part) => part !== "");

/** What has the focus, seen from a node: marimo's cells are shadow trees, which the document does not look into. */
export const focusFrom = (node) => node.getRootNode().activeElement ?? null;

let ids = 0;
export const freshId = (prefix) => `nbt-${prefix}-${(ids += 1)}`;
