// How the columns of a source are read: its format, and which column plays which role. The inspector's, and the form's.

import { el, freshId } from "./dom.js";
import { addTexts, text } from "./texts.js";

addTexts({ "column.format": ["Read as", "Gelesen als"], "column.none": ["none", "keine"] });

/** A menu; a value that is not among the options is shown all the same. */
export function choice(options, value, changed, props = {}) {
  const node = el("select", { id: freshId("pick"), onchange: () => changed(node.value), ...props });
  if (!options.some(([name]) => name === value)) node.append(el("option", { value }, value || text("column.none")));
  node.append(...options.map(([name, label]) => el("option", { value: name }, label)));
  node.value = value;
  return node;
}

/** A mapping without what was not chosen yet. */
const chosen = (mapping) => Object.fromEntries(Object.entries(mapping).filter(([, column]) => column));

/**
 * @param {{ format: string, mapping: Record<string, string>, columns: string[] }} source
 * @param {string[]} formats
 * @param {(format: string | null, columns: Record<string, string>) => void} read
 * @returns {{ format: Node, roles: Node[] }} labelled menus
 */
export function columnPicker(source, formats, read) {
  const format = choice(formats.map((name) => [name, name]), source.format, (value) => read(value || null, {}));
  // as the menus stand now: who is quick chooses the second before the first one's answer is there
  const said = () => chosen(Object.fromEntries(picks.map(([role, pick]) => [role, pick.value])));
  const picks = Object.entries(source.mapping).map(([role, column]) =>
    [role, choice(source.columns.map((name) => [name, name]), column, () => read(source.format || null, said()), { "aria-label": role })]);
  const roles = picks.map(([role, pick]) => el("label", {}, role, pick));
  return { format: el("label", {}, text("column.format"), format), roles };
}
