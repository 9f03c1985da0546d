// The page's half of live_page.py: models that hear the kernel's messages, and a manager that shows panels in each other.
globalThis.models = new Map();
let shown = [];
/** As anywidget dresses a page: one `style` a name, behind those that are there; whoever comes again replaces its own. */
const dress = ({ _css, _anywidget_id: name }) => {
    const node = document.getElementById(name) ?? document.head.appendChild(Object.assign(document.createElement("style"), { id: name, className: "dress" }));
    node.textContent = _css;
};
const bytes = (text) => new DataView(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
const modules = new Map();
const load = (text) => {
    if (!modules.has(text)) modules.set(text, import(URL.createObjectURL(new Blob([text], { type: "text/javascript" }))));
    return modules.get(text);
};
class Model {
    constructor(id, state) { Object.assign(this, { id, state, heard: new Map() }); this.widget_manager = manager; }
    get(name) { return this.state[name]; }
    set(name, value) { this.state[name] = value; }
    save_changes() {}
    on(name, f) { this.heard.set(name, (this.heard.get(name) ?? new Set()).add(f)); }
    off(name, f) { this.heard.get(name)?.delete(f); }
    tell(name, ...words) { for (const f of [...(this.heard.get(name) ?? [])]) f(...words); }
    send(content) { kernel(this.id, JSON.stringify(content)); }
    async begin() { dress(this.state); this.panel ??= load(this.state._esm).then(({ default: make }) => { const made = make(); made.initialize({ model: this }); return made; }); return this.panel; }
}
const manager = {
    get_model: async (id) => { for (let k = 0; k < 100 && !models.has(id); k += 1) await new Promise((done) => setTimeout(done, 20)); return models.get(id); },
    create_view: async (model) => {
        const el = document.createElement("div"), panel = await model.begin(), end = panel.render({ model, el });
        return { el, remove() { end(); el.remove(); } };
    },
};
globalThis.manager = manager;
globalThis.deliver = (messages) => {
    for (const { id, kind, state = {}, content, buffers = [] } of messages) {
        for (const [path, text] of state.$bytes ?? []) {
            const last = path.pop();
            path.reduce((at, key) => at[key], state)[last] = bytes(text);
        }
        delete state.$bytes;
        const model = models.get(id);
        if (kind === "open") models.set(id, new Model(id, state));
        else if (kind === "close") models.delete(id);
        else if (kind === "custom") model?.tell("msg:custom", content, buffers.map(bytes));
        else if (model) {
            Object.assign(model.state, state);
            for (const name of Object.keys(state)) model.tell(`change:${name}`);
        }
    }
};
globalThis.clear = () => {
    for (const view of shown) view.remove();
    for (const node of document.querySelectorAll(".dress")) node.remove();
    shown = [];
};
globalThis.mount = async (id, beside) => {
    if (!beside) clear();
    const view = await manager.create_view(models.get(id));
    shown.push(view);
    document.getElementById("host").append(view.el);
};
