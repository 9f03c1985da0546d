// Builds the page's half of each panel into nbtune/widgets/static. `npm run build`, or `node build.mjs --watch`.
//
// One style serves all panels (style.mjs says why). A panel's module stays small (at most 60 KB: it is part of each widget's
// state). Plotly is a module of its own: it is sent once per page as a message, gzipped, and never lies in a notebook.
import { build, context } from "esbuild";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { gzipSync } from "node:zlib";

import { SOURCE, style } from "./style.mjs";

const HERE = dirname(fileURLToPath(import.meta.url));
const OUT = join(HERE, "..", "nbtune", "widgets", "static");
const MODULE_LIMIT = 60_000;

const panels = readdirSync(SOURCE, { withFileTypes: true })
  .filter((entry) => entry.isDirectory() && existsSync(join(SOURCE, entry.name, "index.js")))
  .map((entry) => entry.name);

// A text's languages as one string, "Loss|Verlust": a module carries some hundred, and an array costs each four bytes more.
const PAIR = /: \["((?:[^"\\]|\\.)*)", "((?:[^"\\]|\\.)*)"\]/g;
const joined = {
  name: "texts",
  setup(made) {
    made.onLoad({ filter: /[\\/]texts(\.all)?\.js$/ }, ({ path }) => ({ contents: readFileSync(path, "utf8").replace(PAIR, ': "$1|$2"'), loader: "js" }));
  },
};

const options = {
  entryPoints: Object.fromEntries(panels.map((name) => [name, join(SOURCE, name, "index.js")])),
  outdir: OUT,
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  legalComments: "none",
  charset: "utf8",
  logLevel: "warning",
  plugins: [joined],
};
const { entryPoints: _, outdir: __, ...shared } = options;
const styles = { ...shared, stdin: style(), outfile: join(OUT, "panels.css") };

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

// Our style's variables by short names: what everybody's notebook carries with each widget is no place for long ones.
const SHORT = Object.fromEntries(["accent", "soft", "line", "fg", "bad", "raised", "warn", "good", "bg", "edge", "mono", "code"].map((name, k) => [`--nbt-${name}`, `--nb${k.toString(36)}`]));
const shortened = (text) => text.replace(/--nbt-[a-z]+/g, (name) => SHORT[name] ?? name);
const shortStyle = (text) => shortened(text).replace(/\btransparent\b/g, "#0000").replace(/(--nb\w): /g, "$1:").replace(/, /g, ",").replace(/(-width): /g, "$1:");

mkdirSync(OUT, { recursive: true });
if (process.argv.includes("--watch")) {
  for (const each of [options, styles]) await (await context(each)).watch();
} else {
  for (const name of panels) rmSync(join(OUT, `${name}.css`), { force: true }); // of an older build
  await Promise.all([build(options), build(styles), buildPlotly()]);
  for (const name of ["panels.css", ...panels.map((panel) => `${panel}.js`)]) {
    const path = join(OUT, name);
    writeFileSync(path, (name === "panels.css" ? shortStyle : shortened)(readFileSync(path, "utf8")));
  }
  for (const name of panels) {
    const size = statSync(join(OUT, `${name}.js`)).size;
    if (size > MODULE_LIMIT) throw new Error(`${name}.js has ${size} bytes; a panel may have ${MODULE_LIMIT}`);
    if (existsSync(join(OUT, `${name}.css`))) throw new Error(`${name}/ imports a style of its own: style.mjs takes every .css of src already`);
  }
  const licence = readFileSync(join(HERE, "node_modules", "plotly.js-basic-dist-min", "LICENSE"), "utf8");
  writeFileSync(join(OUT, "LICENSES.txt"), `plotly.js (plotly.mjs.gz)\n\n${licence}`);
}
