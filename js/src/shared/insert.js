// A new cell below the one that a panel is in: JupyterLab and Notebook 7 give widgets their notebook's document.

/**
 * @param {{ widget_manager?: any }} model
 * @param {HTMLElement} inside the panel
 * @param {string} source
 * @returns {boolean} false where the page does not let a widget do so
 */
export function insertCell(model, inside, source) {
  const notebook = model.widget_manager?.context?.model?.sharedModel;
  if (typeof notebook?.insertCell !== "function") return false;
  // a cell's node knows its place, also where cells that are out of sight have no node
  const cell = inside.closest(".jp-Cell");
  const here = Number(cell?.dataset.windowedListIndex ?? [...(cell?.parentElement?.children ?? [])].indexOf(cell));
  const end = notebook.cells.length;
  notebook.insertCell(here >= 0 && here < end ? here + 1 : end, { cell_type: "code", source, metadata: {} });
  return true;
}
