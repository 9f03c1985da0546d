import assert from "node:assert/strict";
import { test } from "node:test";
import { served } from "../src/shared/files.js";

test("a file is served below the folder that Jupyter was started in, and nowhere else", () => {
  assert.equal(served("work/a.ipynb", "runs/x/exports/a.gguf"), "work/runs/x/exports/a.gguf");
  assert.equal(served("a.ipynb", "runs/x.gguf"), "runs/x.gguf");
  assert.equal(served("RTC:work/deep/a.ipynb", "../runs/./x.gguf"), "work/runs/x.gguf");
  for (const outside of ["../x", "../../x", "/etc/passwd", "~/x", "C:/x"]) assert.equal(served("work/a.ipynb", outside === "../x" ? "../../x" : outside), null, outside);
});
