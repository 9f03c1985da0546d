// What differs between two answers, word by word.

import { el } from "./dom.js";

const MOST = 400; // words of each that are compared

/** "a b" and "a c" → [["a", false], [" ", false], ["c", true]]: the second's words, and whether the first has them not. */
export function news(before, after) {
  const [old, fresh] = [before, after].map((said) => said.split(/(\s+)/).filter((word) => word !== ""));
  if (old.length > MOST || fresh.length > MOST) return [[after, false]];
  // the longest run of words that both have, from the end
  const common = Array.from({ length: old.length + 1 }, () => new Uint16Array(fresh.length + 1));
  for (let i = old.length - 1; i >= 0; i -= 1) {
    for (let j = fresh.length - 1; j >= 0; j -= 1) {
      common[i][j] = old[i] === fresh[j] ? common[i + 1][j + 1] + 1 : Math.max(common[i + 1][j], common[i][j + 1]);
    }
  }
  const found = [];
  for (let i = 0, j = 0; j < fresh.length;) {
    if (i < old.length && old[i] === fresh[j]) {
      found.push([fresh[j], false]);
      i += 1;
      j += 1;
    } else if (i < old.length && common[i + 1][j] >= common[i][j + 1]) {
      i += 1;
    } else {
      found.push([fresh[j], fresh[j].trim() !== ""]);
      j += 1;
    }
  }
  return found;
}

/** The second answer; what the first does not say is marked. */
export const marked = (before, after) => news(before, after).map(([word, fresh]) => (fresh ? el("mark", {}, word) : word));
