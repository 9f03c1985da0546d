// Colours: Jupyter's own variables for surfaces and text, Okabe-Ito for data (safe for colour-blind eyes).

const DATA = {
  light: { loss: "#0072B2", eval: "#D55E00", rate: "#007A5A", speed: "#A3527F", memory: "#8A6100", busy: "#B14A00" },
  dark: { loss: "#56B4E9", eval: "#E69F00", rate: "#2BC49A", speed: "#DDA0C3", memory: "#F0E442", busy: "#F0A35E" },
};

/** What charts need to know about the page that `root` is in. */
export function readTheme(root) {
  const style = getComputedStyle(root);
  const dark = luminance(style.backgroundColor) < 0.35;
  return {
    dark,
    text: style.color,
    grid: dark ? "rgba(255,255,255,0.14)" : "rgba(0,0,0,0.10)",
    paper: style.backgroundColor,
    font: style.fontFamily,
    ...DATA[dark ? "dark" : "light"],
  };
}

/** Calls `changed` when the page's theme changes; returns a function that ends it. */
export function watchTheme(changed) {
  const observer = new MutationObserver(() => requestAnimationFrame(changed));
  for (const node of [document.body, document.documentElement]) {
    observer.observe(node, { attributes: true, attributeFilter: ["class", "data-jp-theme-light", "data-jp-theme-name"] });
  }
  const over = new AbortController(), { signal } = over;
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed, { signal });
  // JupyterLab loads a theme's style sheet after it has set the attribute.
  document.head.addEventListener("load", changed, { signal, capture: true });
  return () => {
    observer.disconnect();
    over.abort();
  };
}

/** Keeps `root` marked as dark where the page is; for panels without charts. Returns a function that ends it. */
export function followTheme(root) {
  const mark = () => root.classList.toggle("nbt-dark", readTheme(root).dark);
  requestAnimationFrame(mark);
  return watchTheme(mark);
}

export function luminance(colour) {
  const [r, g, b, a = 1] = (colour.match(/[\d.]+/g) ?? [255, 255, 255]).map(Number);
  if (a === 0) return 1;
  const linear = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

export const reducedMotion = () => matchMedia("(prefers-reduced-motion: reduce)").matches;
