// Builds the page's half of each panel into nbtune/widgets/static. `npm run build`, or `node build.mjs --watch`.
//
// One style serves all panels (src/panels.css says why). A panel's module stays small (at most 60 KB: it is part of each widget's state). Plotly is a module of its own: it is
// sent once per page as a message, gzipped, and never lies in a notebook.
import { build, context } from "esbuild";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

const HERE = dirname(fileURLToPath(import.meta.url));
const OUT = join(HERE, "..", "nbtune", "widgets", "static");
const MODULE_LIMIT = 60_000;

const panels = readdirSync(join(HERE, "src"), { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && existsSync(join(HERE, "src", entry.name, "index.js")))
  .map((entry) => entry.name);

const options = {
  entryPoints: { ...Object.fromEntries(panels.map((name) => [name, join(HERE, "src", name, "index.js")])), panels: join(HERE, "src", "panels.css") },
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  charset: "utf8",
  logLevel: "warning",
};

async function buildPlotly() {
  const result = await build({
    stdin: { contents: 'export { default } from "plotly.js-basic-dist-min";', resolveDir: HERE },
    bundle: true,
    minify: true,
    format: "esm",
    target: "es2022",
    legalComments: "inline",
    charset: "utf8",
    write: false,
    logLevel: "warning",
  });
  writeFileSync(join(OUT, "plotly.mjs.gz"), gzipSync(result.outputFiles[0].contents, { level: 9 }));
}

mkdirSync(OUT, { recursive: true });
if (process.argv.includes("--watch")) {
  await (await context(options)).watch();
} else {
  for (const name of panels) rmSync(join(OUT, `${name}.css`), { force: true }); // of an older build
  await Promise.all([build(options), buildPlotly()]);
  for (const name of panels) {
    const size = statSync(join(OUT, `${name}.js`)).size;
    if (size > MODULE_LIMIT) throw new Error(`${name}.js has ${size} bytes; a panel may have ${MODULE_LIMIT}`);
    if (existsSync(join(OUT, `${name}.css`))) throw new Error(`${name}/ imports a style of its own: it belongs into src/panels.css`);
  }
  const licence = readFileSync(join(HERE, "node_modules", "plotly.js-basic-dist-min", "LICENSE"), "utf8");
  writeFileSync(join(OUT, "LICENSES.txt"), `plotly.js (plotly.mjs.gz)\n\n${licence}`);
}
