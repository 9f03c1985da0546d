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
const { markdown } = await import("../src/export/markdown.js");
const shown = (text) => markdown(text).map((node) => [node.tag, node.text]);

test("a card's parts", () => {
  const card = "---\nlicense: mit\n---\n\n# demo\n\nA `fine`\n**tune**.\n![loss](loss.png)\n## Data\n\n- rows\n- [more](x)\n\n| | |\n|---|---|\n| loss \\| end | 0.5 |\n\n```yaml\n# a: b\n| c |\n```\nend";
  assert.deepEqual(shown(card), [
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
  const began = performance.now();
  for (const odd of ["[", "![", "`", "**", "| ", "- ", " ", "(", "\n", "[a](", "#"]) markdown(odd.repeat(200_000 / odd.length));
  assert.ok(performance.now() - began < 5000);
});
