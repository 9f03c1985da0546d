// Markdown (a model card's, an answer's) as elements: headings, paragraphs, lists, tables, code. Nothing in it is read as
// HTML, no link can be followed and no picture is fetched: what is not known stays the text that it is.

import { el } from "../shared/dom.js";

// Bounded, so that no text makes them slow.
const INLINE = /(`[^`]{1,500}`|\*\*[^*]{1,500}\*\*|!?\[[^\]]{0,300}\]\([^)\s]{0,500}\))/;
const ITEM = /^ {0,8}[-*]\s/;
const NUMBERED = /^ {0,8}(\d{1,4})[.)]\s/;
const HEADING = /^(#{1,6})\s+(.*)$/;
const FENCE = /^(`{3,})\s*([\w+-]*)\s*$/;
const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
const isRow = (line) => /^\s*\|.*\|\s*$/.test(line);

/** Text with `code`, **bold**, links and pictures (which are named). */
function inline(line) {
  return line.split(INLINE).filter(Boolean).map((part) => {
    if (/^`[^`]+`$/.test(part)) return el("code", {}, part.slice(1, -1));
    if (/^\*\*[^*]+\*\*$/.test(part)) return el("strong", {}, part.slice(2, -2));
    const link = /^(!?)\[([^\]]*)\]\(([^)\s]*)\)$/.exec(part);
    if (!link) return part.replaceAll("&lt;", "<");
    return link[1] ? el("em", {}, `[${link[2]}: ${link[3]}]`) : `${link[2]} (${link[3]})`;
  });
}

function table(lines) {
  const [head, ...rows] = lines.filter((line) => !/^[\s|:-]+$/.test(line) || !line.includes("-")).map(cells);
  const row = (tag, entries) => el("tr", {}, ...entries.map((entry) => el(tag, {}, ...inline(entry))));
  const named = head?.some(Boolean);
  return el("table", {}, named ? el("thead", {}, row("th", head)) : null, el("tbody", {}, ...rows.map((entries) => row("td", entries))));
}

/**
 * The elements of a card.
 * @param {string} text Markdown
 * @param {{ front?: boolean }} options front: there may be YAML between two lines of `---` at its top
 */
export function markdown(text, { front = false } = {}) {
  const lines = text.split(/\r?\n/), made = [];
  let at = 0;
  const until = (ends) => {
    const from = at;
    while (at < lines.length && !ends(lines[at])) at += 1;
    return lines.slice(from, at);
  };
  if (front && lines[0]?.trim() === "---") {
    at = 1;
    made.push(el("pre", { class: "nbt-soft" }, until((line) => line.trim() === "---").join("\n")));
    at += 1;
  }
  while (at < lines.length) {
    const line = lines[at], fence = FENCE.exec(line), heading = HEADING.exec(line);
    if (fence) {
      at += 1;
      made.push(el("pre", {}, until((each) => each.trim() === fence[1]).join("\n")));
      at += 1;
    } else if (heading) {
      at += 1;
      made.push(el(heading[1].length === 1 ? "h4" : "h5", {}, ...inline(heading[2])));
    } else if (isRow(line)) made.push(table(until((each) => !isRow(each))));
    else if (ITEM.test(line)) made.push(el("ul", {}, ...until((each) => !ITEM.test(each)).map((each) => el("li", {}, ...inline(each.replace(ITEM, ""))))));
    else if (NUMBERED.test(line)) made.push(el("ol", { start: NUMBERED.exec(line)[1] }, ...until((each) => !NUMBERED.test(each)).map((each) => el("li", {}, ...inline(each.replace(NUMBERED, ""))))));
    else if (!line.trim()) at += 1;
    else {
      const first = at;
      made.push(el("p", {}, ...inline(until((each) => at > first && (!each.trim() || FENCE.test(each) || HEADING.test(each) || isRow(each) || ITEM.test(each) || NUMBERED.test(each))).join("\n"))));
    }
  }
  return made;
}

/** Whether a text has something that reads better as Markdown. */
export const isMarkdown = (text) => /^ {0,3}(#{1,6} |```|\|.{1,500}\|\s*$)|\*\*(?=\S)[^*\n]{1,200}(?<=\S)\*\*|`[^`\n]{1,200}`/m.test(text) || (text.match(/^ {0,8}([-*]|\d{1,3}[.)]) \S/gm) ?? []).length > 1;
