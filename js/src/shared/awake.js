// anywidget waits two seconds for a panel's module. Where it takes longer (the machine is busy, with training for example) the panel is drawn all
// the same, but no message of the kernel reaches it any more: it stays as it was first. Its messages are then taken in without that wait.

import { tell } from "./wishes.js";

/** Called when the panel is drawn: by then anywidget has made up its mind. */
export async function stayAwake(model) {
  if (!model.set) return; // a page without a kernel
  const page = behind(model), plain = page && Object.getPrototypeOf(Object.getPrototypeOf(page));
  if (!page?.comm?.on_msg || !plain?._handle_comm_msg) return;
  try {
    await page._handle_comm_msg({ content: { data: { method: "" } }, buffers: [] });
  } catch {
    page.comm.on_msg((message) => plain._handle_comm_msg.call(page, message));
    tell(model, { t: "state?" }); // what was missed
  }
}

/** The page's own model: whoever listens for a change is told whose it is. */
function behind(model) {
  let found = null;
  const take = (owner) => { found = owner; };
  model.on("change:_awake", take);
  model.set("_awake", {});
  model.off("change:_awake", take);
  return found;
}
