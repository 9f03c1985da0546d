// The style of all panels, in one order: what they share, then each folder's own (src/NAME/*.css). Each panel hands the
// whole text to its page under one id (nbtune/widgets/base.py), so a page has it once, and which panel was opened first or
// last changes nothing.
import { readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";

export const SOURCE = join(dirname(fileURLToPath(import.meta.url)), "src");

/** An entry for esbuild (`stdin`) that imports every style of src. */
export function style() {
  const files = readdirSync(SOURCE, { recursive: true }).map((name) => name.replaceAll("\\", "/")).filter((name) => name.endsWith(".css"));
  files.sort((a, b) => !a.startsWith("shared/") - !b.startsWith("shared/") || (a < b ? -1 : 1));
  return { contents: files.map((name) => `@import "./${name}";`).join("\n"), resolveDir: SOURCE, loader: "css" };
}
