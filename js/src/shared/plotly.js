// Plotly, once per page. The first chart asks its kernel for it; it arrives gzipped as a message, is imported from a
// blob, and every other chart of the page uses the same one. It is never part of a widget's state.

import { tell } from "./wishes.js";

const KEY = Symbol.for("nbtune.plotly");

/**
 * @param {{ send(content: object): void, on(name: string, f: Function): void, off(name: string, f: Function): void }} model
 * @returns {Promise<any>} Plotly
 */
export function loadPlotly(model) {
  const page = (globalThis[KEY] ??= {});
  page.promise ??= new Promise((resolve, reject) => Object.assign(page, { resolve, reject }));
  if (!page.done) ask(page, model);
  return page.promise;
}

// A view that closes before its answer came must not leave the others waiting: whoever comes later asks anew after 3 s.
function ask(page, model) {
  const listen = async (content, buffers) => {
    if (content?.t !== "plotly") return;
    model.off("msg:custom", listen);
    if (page.done) return;
    page.done = true;
    try {
      page.resolve(await importModule(buffers[0]));
    } catch (error) {
      page.done = false;
      page.reject(error);
      delete globalThis[KEY];
    }
  };
  model.on("msg:custom", listen);
  if (page.asked && Date.now() - page.asked < 3000) {
    setTimeout(() => page.done || tell(model, { t: "plotly?" }), 3000);
    return;
  }
  page.asked = Date.now();
  tell(model, { t: "plotly?" });
}

async function importModule(view) {
  const zipped = new Blob([new Uint8Array(view.buffer, view.byteOffset, view.byteLength)]);
  const text = await new Response(zipped.stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
  const url = URL.createObjectURL(new Blob([text], { type: "text/javascript" }));
  try {
    return (await import(/* @vite-ignore */ url)).default;
  } finally {
    URL.revokeObjectURL(url);
  }
}
