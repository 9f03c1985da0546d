// A panel in another one: a widget of its own, by the page's way to show one in another.

export class Nested {
  /** @param {HTMLElement} host where it is shown */
  constructor(model, host) {
    Object.assign(this, { model, host });
  }

  /**
   * Shows the widget of a model in place of the one before; no id takes it away.
   * @param {string | undefined} id
   * @param {() => Node | null} [above] what stands above it
   * @returns {Promise<boolean | undefined>} false: this page cannot (marimo shows a widget as a cell's value only);
   *   undefined: nothing changed, or another one was wanted meanwhile
   */
  async show(id, above = () => null) {
    if (id === this.id) return undefined;
    this.id = id;
    this.drop();
    if (!id) return undefined;
    try {
      const manager = this.model.widget_manager;
      const view = await manager.create_view(await manager.get_model(id));
      if (this.id !== id) return void view.remove();
      this.view = view;
      this.host.replaceChildren(...[above(), view.el].filter(Boolean));
      return true;
    } catch {
      return this.id === id ? false : undefined;
    }
  }

  drop() {
    this.view?.remove?.();
    this.view = null;
    this.host.replaceChildren();
  }
}
