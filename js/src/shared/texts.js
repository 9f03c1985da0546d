// The texts of the panels: shared ones (and the monitor's) in texts.all.js, those of another panel in its texts.js, so that
// a panel carries only its own. A text is written once for all languages, beside its key: a panel's module is part of its
// widget's state, and keys would be in it twice. A test compares the languages.

import { ALL } from "./texts.all.js";

const LANGUAGES = ["en", "de"];
export const TABLES = Object.fromEntries(LANGUAGES.map((name) => [name, {}]));

/** A panel's own texts: by key what each language says (built: in one string, with a bar between), or one text for all. */
export function addTexts(texts) {
  for (const [key, said] of Object.entries(texts)) {
    const each = [said].flat().join("|").split("|");
    LANGUAGES.forEach((name, k) => { TABLES[name][key] = each[k] ?? each[0]; });
  }
}

addTexts(ALL);

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
  const pattern = table[key] ?? TABLES.en[key] ?? key;
  return pattern.replace(/\{(\w+)\}/g, (whole, name) => (name in values ? String(values[name]) : whole));
}
