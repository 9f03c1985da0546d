// How a panel comes up. anywidget hands different proxies of the model to initialize and render: what the views of one
// model share is made once, here.

import { stayAwake } from "./awake.js";
import { keepFocus } from "./keepfocus.js";
import { tell, Wishes } from "./wishes.js";

/**
 * A panel's module.
 * @param {(model: object, shared: any) => { root: HTMLElement, destroy(): void }} makeView a view on the model
 * @param {() => { connect(model: object): () => void }} makeShared what all views of the model share
 */
export const panel = (makeView, makeShared = () => new Wishes()) => () => {
  const shared = makeShared();
  return {
    initialize: ({ model }) => shared.connect(model),
    render({ model, el: host }) {
      const view = makeView(model, shared);
      host.append(view.root);
      const over = new AbortController(), { signal } = over;
      keepFocus(host, signal);
      host.addEventListener("keydown", keep, { signal });
      host.addEventListener("beforeinput", own, { signal, capture: true });
      stayAwake(model);
      tell(model, { t: "hello" }); // the page can show panels: no need of the text instead
      return () => {
        over.abort();
        view.destroy();
      };
    },
  };
};

// JupyterLab's notebook takes arrow keys for itself, also from a menu or a number's field in a cell's output: they moved nothing.
const MOVES = new Set(["ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "Home", "End", "PageUp", "PageDown"]);
const keep = (event) => {
  if (MOVES.has(event.key) && event.target.matches?.("select, input, textarea")) event.stopPropagation();
};

// JupyterLab forbids line breaks, and undoing, in whatever field is in a cell, by a listener on the field itself: Enter made no new line.
const own = (event) => event.stopPropagation();
