// Each visible button of the panels: its words, and the contrast of its text with what is behind it (WCAG 2). A canvas reads
// any colour that CSS can write; what is see-through lets the ancestors' colour through.
() => {
    const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
    const read = (colour) => {
        pen.clearRect(0, 0, 1, 1);
        pen.fillStyle = colour;
        pen.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data;
        return [[r, g, b], a / 255];
    };
    const over = ([top, alpha], below) => below.map((value, k) => alpha * top[k] + (1 - alpha) * value);
    const behind = (node) => {
        const page = node.parentElement ?? node.getRootNode().host;
        const own = read(getComputedStyle(node).backgroundColor);
        return own[1] === 1 || !page ? over(own, [255, 255, 255]) : over(own, behind(page));
    };
    const straight = (c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
    const light = (colour) => {
        const [r, g, b] = colour.map((c) => straight(c / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const says = (node) => [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim());
    return [...document.querySelectorAll(".nbt button, .nbt button *")].filter((node) => says(node) && node.checkVisibility()).map((node) => {
        const back = behind(node), button = node.closest("button");
        const [low, high] = [light(back), light(over(read(getComputedStyle(node).color), back))].sort((a, b) => a - b);
        const place = node.closest(".nbt").className;
        return { place, words: node.textContent, disabled: button.disabled, contrast: (high + 0.05) / (low + 0.05) };
    });
}
