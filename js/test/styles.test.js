import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { build } from "esbuild";

import { SOURCE, style } from "../style.mjs";

const files = readdirSync(SOURCE, { recursive: true });
const bundled = (await build({ stdin: style(), bundle: true, write: false, charset: "utf8" })).outputFiles[0].text;

/** The rules of a style: [selectors, declarations], also those within `@container`. */
function rules(css) {
  const found = [];
  for (const [, head, body] of css.replace(/\/\*.*?\*\//gs, "").matchAll(/([^{};]+)\{([^{}]*)\}/g)) {
    found.push([head.trim().split(/,(?![^()]*\))/).map((each) => each.trim()), body]);
  }
  return found;
}

test("one style has all that there is, each part once", () => {
  const parts = files.filter((name) => name.endsWith(".css"));
  const taken = [...style().contents.matchAll(/@import "\.\/([^"]+)"/g)].map((match) => match[1]);
  assert.deepEqual([...taken].sort(), parts.sort());
  assert.equal(taken[0], "shared/base.css"); // what panels change of it comes after it
  const button = rules(bundled).filter(([selectors]) => selectors.join() === ".nbt-btn");
  assert.equal(button.length, 1);
});

test("no module brings a style of its own", () => {
  for (const name of files.filter((each) => each.endsWith(".js"))) {
    assert.doesNotMatch(readFileSync(join(SOURCE, name), "utf8"), /\.css"|adoptedStyleSheets|el\("style"/, name);
    // a class is written whole: the worst rows' Drop had become a zone for files, dashed, by `nbt-${act}`
    assert.doesNotMatch(readFileSync(join(SOURCE, name), "utf8"), /class: `[^`]*nbt-\$\{/, name);
  }
});

test("nothing outside of the panels is styled", () => {
  const known = ".jp-OutputArea:has(.nbt-monitor) .nbtune-static img"; // nbtune's own picture below a live panel
  const all = rules(bundled).flatMap(([selectors]) => selectors).filter((selector) => selector !== known);
  assert.ok(all.length > 150);
  assert.deepEqual(all.filter((selector) => !/^(?::(?:where|is)\()?\.nbt(?:-|\b)/.test(selector)), []);
});

test("where a primary button gets a colour, its text and what is behind it get theirs together", () => {
  const main = rules(bundled).filter(([selectors]) => selectors.some((selector) => selector.includes("nbt-main")));
  assert.ok(main.length >= 3);
  for (const [selectors, body] of main) {
    assert.match(body, /\bbackground:/, selectors.join());
    assert.match(body, /(?<!-)\bcolor:/, selectors.join());
    assert.match(selectors.join(), /^\.nbt-btn\.nbt-main/); // in one place only
  }
});
