// What was made, as a list: a link that downloads a file or shows a folder where the page has one, else where it lies.

import { el, setText } from "../shared/dom.js";
import { addressOf } from "../shared/files.js";
import { bytes } from "../shared/format.js";
import { text } from "../shared/texts.js";

export class Files {
  constructor(model, wishes) {
    Object.assign(this, { model, wishes, addresses: new Map() });
    this.node = el("ul", { class: "nbt-files" });
  }

  show(files, notes) {
    const wrong = notes.map((note) => [note.time, el("li", { "data-level": "error", class: "nbt-text" }, note.message,
      note.fix ? el("div", { class: "nbt-soft" }, text("note.fix", { fix: note.fix })) : null)]);
    const made = files.map((file) => [file.time, file.done < 1
      ? el("li", {}, text("export.making", { kind: file.kind, done: Math.round(100 * file.done) }))
      : this.line(file)]);
    this.node.replaceChildren(...[...wrong, ...made].sort((a, b) => b[0] - a[0]).map(([, node]) => node));
  }

  line(file) {
    const name = /^https?:\/\//.test(file.path) ? el("a", { href: file.path, target: "_blank", rel: "noopener noreferrer" }, file.path) : el("span", {}, file.path);
    const node = el("li", { class: "nbt-text" }, [file.kind, file.bytes ? bytes(file.bytes) : "", file.detail].filter(Boolean).join(" · "), el("div", { class: "nbt-row" }, name));
    if (file.here) this.link(file, node.lastChild);
    return node;
  }

  /** Where the page can open it, a link stands before the path. */
  async link({ here, folder }, row) {
    if (this.model.get("colab") && !folder) {
      row.prepend(el("button", { type: "button", class: "nbt-btn", onclick: () => this.wishes.ask("download", { path: here }) }, text("export.download")));
      return;
    }
    if (!this.addresses.has(here)) this.addresses.set(here, await addressOf(this.model, here, folder));
    const href = this.addresses.get(here);
    if (href) row.prepend(el("a", { class: "nbt-btn", href, ...(folder ? { target: "_blank", rel: "noopener" } : { download: "" }) }, text(folder ? "export.show" : "export.download")));
    else setText(row.lastChild, here);
  }
}
