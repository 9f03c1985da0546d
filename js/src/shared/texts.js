// The texts of the panels: shared ones (and the monitor's) here, those of another panel in its texts.js, so that a panel
// carries only its own. A language is a whole table: a test compares their keys.

import { en } from "./texts.en.js";
import { de } from "./texts.de.js";

export const TABLES = { en, de };

/** A panel's own texts, by language. */
export function addTexts(tables) {
  for (const [name, table] of Object.entries(tables)) Object.assign(TABLES[name], table);
}

/** The language of the page (JupyterLab sets it), else English. */
export function language(root = globalThis.document?.documentElement ?? {}) {
  const wanted = (root.lang || "en").toLowerCase().split(/[-_]/)[0];
  return wanted in TABLES ? wanted : "en";
}

/**
 * text("step", { step: 3 }) → "step 3". `{name}` is filled in; what is filled in stays text.
 * @param {string} key
 * @param {Record<string, string | number>} [values]
 */
export function text(key, values = {}, table = TABLES[language()]) {
  const pattern = table[key] ?? en[key] ?? key;
  return pattern.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
