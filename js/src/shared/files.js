// The page's address of a file of the kernel's machine: Jupyter serves what lies below the folder it was started in.

const SITE = () => {
  try {
    return JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "null");
  } catch {
    return null;
  }
};

/**
 * "exports/a.gguf", seen from a notebook in "work/", is "work/exports/a.gguf"; null where that leaves the served folder.
 * @param {string} relative as the kernel names it: its working folder is the notebook's, unless somebody changed it
 */
export function served(notebook, relative) {
  if (/^(\/|~|[A-Za-z]:)/.test(relative)) return null;
  const parts = notebook.replace(/^[^/:]+:/, "").split("/").slice(0, -1); // "RTC:work/a.ipynb": a drive's name comes first
  for (const part of relative.split("/")) {
    if (part === "..") {
      if (parts.pop() === undefined) return null;
    } else if (part && part !== ".") parts.push(part);
  }
  return parts.join("/");
}

const encoded = (path) => path.split("/").map(encodeURIComponent).join("/");

/**
 * Addresses that the page can open, if the server has the file there; null elsewhere (VS Code, Colab, marimo).
 * @returns {Promise<string | null>} of a file: what downloads it; of a folder: what shows it
 */
export async function addressOf(model, relative, folder) {
  const site = SITE(), notebook = model.widget_manager?.context?.path;
  if (!site?.baseUrl || !notebook || !relative) return null;
  const path = served(notebook, relative);
  if (!path) return null;
  const base = new URL(site.baseUrl, location.href).href;
  try {
    const there = await fetch(`${base}api/contents/${encoded(path)}?content=0`, { credentials: "same-origin" });
    if (!there.ok) return null;
  } catch {
    return null;
  }
  if (!folder) return `${base}files/${encoded(path)}?download=1`;
  return `${base}${String(site.appUrl ?? "").includes("lab") ? "lab/tree" : "tree"}/${encoded(path)}`;
}
