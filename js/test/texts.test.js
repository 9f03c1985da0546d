import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { TABLES, text } from "../src/shared/texts.js";

const SOURCE = new URL("../src", import.meta.url).pathname;
const own = readdirSync(SOURCE, { recursive: true }).filter((name) => /^\w+\/texts\.js$/.test(name) && !name.startsWith("shared"));
for (const name of [...own, "shared/reading.js"]) await import(join(SOURCE, name));

test("every language has every text, with the same blanks", () => {
  const blanks = (pattern) => (pattern.match(/\{\w+\}/g) ?? []).sort();
  for (const [language, table] of Object.entries(TABLES)) {
    assert.deepEqual(Object.keys(table).sort(), Object.keys(TABLES.en).sort(), language);
    for (const key of Object.keys(table)) {
      assert.deepEqual(blanks(table[key]), blanks(TABLES.en[key]), `${language}: ${key}`);
      assert.doesNotMatch(table[key], /\|/, key); // the build writes it between languages
    }
  }
});

test("every text that the panels ask for by name is there", () => {
  const files = readdirSync(SOURCE, { recursive: true }).filter((name) => name.endsWith(".js"));
  for (const file of files) {
    const source = readFileSync(join(SOURCE, file), "utf8");
    for (const [, key] of source.matchAll(/\btext\("([^"]+)"/g)) assert.ok(key in TABLES.en, `${file}: ${key}`);
  }
});

test("what is filled in stays text", () => {
  assert.equal(text("run", { name: "<img onerror=x> {total}" }, TABLES.en), "Run <img onerror=x> {total}");
});

test("nothing is ever read as HTML", () => {
  const files = readdirSync(SOURCE, { recursive: true }).filter((name) => name.endsWith(".js"));
  for (const file of files) {
    const source = readFileSync(join(SOURCE, file), "utf8");
    assert.doesNotMatch(source, /innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function/, file);
  }
});
