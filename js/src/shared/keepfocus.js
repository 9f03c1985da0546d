// Whoever works by keyboard stays where they are: the focus of a button that is switched off while it works comes back to it,
// that of one that has gone passes to what stands there now. A page would begin again at its top.

import { focusFrom } from "./dom.js";

const STOPS = "a[href], button, input, select, textarea, summary, [tabindex]";
const there = (node) => node.isConnected && node.checkVisibility();

/** @param {HTMLElement} host @param {AbortSignal} signal ends it */
export function keepFocus(host, signal) {
  let last = null, around = [], keyed = false;
  const came = ({ target }) => {
    last = target;
    around = [];
    for (let node = target.parentElement; node && node !== host; node = node.parentElement) around.push(node);
  };
  /** Somebody has gone elsewhere; what is only switched off, or has gone, lost its focus. */
  const left = () => setTimeout(() => { if (last && there(last) && !last.disabled && document.hasFocus() && focusFrom(host) !== last) last = null; });
  const look = () => {
    if (!last || !keyed) return;
    const now = focusFrom(host);
    if (now && now !== last && now !== document.body) last = null;
    else if (there(last)) { if (now !== last && !last.disabled) last.focus({ preventScroll: true }); }
    else pass();
  };
  const pass = () => {
    const from = last.isConnected ? last : around.find(there) ?? host;
    const stops = [...host.querySelectorAll(STOPS)].filter((node) => node.tabIndex >= 0 && !node.disabled && there(node));
    const next = stops.find((node) => from.compareDocumentPosition(node) & Node.DOCUMENT_POSITION_FOLLOWING) ?? stops.at(-1);
    next?.focus({ preventScroll: true });
  };
  const by = ({ type }) => { keyed = type === "keydown"; };
  const listened = { focusin: came, focusout: left, keydown: by, pointerdown: by };
  for (const [name, listener] of Object.entries(listened)) host.addEventListener(name, listener, { signal, capture: true });
  const changes = new MutationObserver(look);
  changes.observe(host, { childList: true, subtree: true, attributeFilter: ["disabled", "hidden"] });
  signal.addEventListener("abort", () => changes.disconnect());
}
