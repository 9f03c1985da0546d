// How a panel comes up. anywidget hands different proxies of the model to initialize and render: what the views of one
// model share is made once, here.

import { Wishes } from "./wishes.js";

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
      model.send({ t: "hello" }); // the page can show panels: no need of the text instead
      return () => view.destroy();
    },
  };
};
