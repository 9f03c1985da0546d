import assert from "node:assert/strict";
import { test } from "node:test";

class Node {
  constructor(tag) {
    Object.assign(this, { tag, children: [], attributes: {} });
  }
  append(...nodes) { this.children.push(...nodes); }
  setAttribute(name, value) { this.attributes[name] = value; }
  get text() { return this.children.map((child) => child.text ?? child).join(""); }
}
globalThis.document = { createElement: (tag) => new Node(tag) };
const { isMarkdown, markdown } = await import("../src/shared/markdown.js");
const shown = (text, options) => markdown(text, options).map((node) => [node.tag, node.text]);

test("a card's parts", () => {
  const card = "---\nlicense: mit\n---\n\n# demo\n\nA `fine`\n**tune**.\n![loss](loss.png)\n## Data\n\n- rows\n- [more](x)\n\n| | |\n|---|---|\n| loss \\| end | 0.5 |\n\n```yaml\n# a: b\n| c |\n```\nend";
  assert.deepEqual(shown(card, { front: true }), [
    ["pre", "license: mit"], ["h4", "demo"], ["p", "A fine\ntune.\n[loss: loss.png]"], ["h5", "Data"], ["ul", "rowsmore (x)"],
    ["table", "loss | end0.5"], ["pre", "# a: b\n| c |"], ["p", "end"],
  ]);
});

test("HTML, links and fences that never end stay text", () => {
  assert.deepEqual(shown("<img src=x onerror=y>\n\n[a](javascript:1)\n\n```\n</pre><script>"), [
    ["p", "<img src=x onerror=y>"], ["p", "a (javascript:1)"], ["pre", "</pre><script>"],
  ]);
});

test("no text is slow", () => {
  const began = process.cpuUsage(); // of this process alone: others may have the cores
  for (const odd of ["[", "![", "`", "**", "| ", "- ", " ", "(", "\n", "[a](", "#"]) markdown(odd.repeat(200_000 / odd.length));
  const { user, system } = process.cpuUsage(began);
  assert.ok(user + system < 5e6); // microseconds
});

test("an answer's numbered list, and its rules, which are no card's head", () => {
  assert.deepEqual(shown("1. one\n2. `two`\n\n---\nx: y\n---"), [["ol", "onetwo"], ["p", "---\nx: y\n---"]]);
});

test("what is plain is left as it is", () => {
  for (const text of ["Ahoy!", "3 * 4 * 5", "- no list", "1. May", "a | b", "#hashtag", "2 ** 3 ** 4"]) assert.ok(!isMarkdown(text), text);
  for (const text of ["# Title", "a\n\n```py\nx\n```", "so **bold**", "call `f`", "- a\n- b", "1. a\n2. b", "| a |\n|---|"]) assert.ok(isMarkdown(text), text);
});
