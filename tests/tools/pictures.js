// What a ruler finds wrong in a panel: what sticks out, is cut off, lies on another text; a chart that is a stamp; nothing at all.
(panel) => {
    const found = [], edge = panel.getBoundingClientRect().right + 1;
    const named = (node) => `${node.tagName.toLowerCase()}.${[...node.classList].join(".")} “${node.textContent.trim().slice(0, 40)}”`;
    const seen = (node) => node.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true });
    const scrolls = (node) => node.closest(".nbt-scroll, .nbt-page, .nbt-gallery, .nbt-example, .nbt-turns, .nbt-card, svg, .nbt-sr, datalist, textarea, .js-plotly-plot");
    const hidden = (node) => node.closest("thead") && getComputedStyle(node.closest("thead")).clipPath !== "none"; // for screen readers
    const nodes = [...panel.querySelectorAll("*")].filter(seen);
    for (const node of nodes) {
        const box = node.getBoundingClientRect();
        if (!box.width || !box.height || scrolls(node) || hidden(node)) continue;
        if (box.right > edge) found.push(`sticks out: ${named(node)}`);
        const style = getComputedStyle(node);
        const cuts = style.overflowX === "hidden" || style.overflowX === "clip";
        if (cuts && node.scrollWidth > node.clientWidth + 2 && style.textOverflow !== "ellipsis" && node.tagName !== "SELECT") found.push(`cut: ${named(node)}`);
    }
    for (const chart of panel.querySelectorAll(".nbt-chart")) {
        if (!seen(chart)) continue;
        const box = chart.getBoundingClientRect(), drawn = chart.querySelector(".main-svg, .nbt-plain")?.getBoundingClientRect();
        if (box.width < 120 || box.height < 60) found.push(`small chart: ${Math.round(box.width)} × ${Math.round(box.height)}`);
        if (drawn && (Math.abs(drawn.width - box.width) > 12 || Math.abs(drawn.height - box.height) > 12)) found.push(`a stamp: ${Math.round(drawn.width)} × ${Math.round(drawn.height)} in ${Math.round(box.width)} × ${Math.round(box.height)}`);
    }
    const words = nodes.filter((node) => !scrolls(node) && !hidden(node) && [...node.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
    const boxes = words.flatMap((node) => {
        const range = document.createRange();
        return [...node.childNodes].filter((child) => child.nodeType === 3 && child.data.trim()).flatMap((child) => { range.selectNodeContents(child); return [...range.getClientRects()].map((box) => [node, box]); });
    });
    for (let k = 0; k < boxes.length; k += 1) for (let j = k + 1; j < boxes.length && j < k + 60; j += 1) {
        const [one, a] = boxes[k], [other, b] = boxes[j];
        if (one === other || one.contains(other) || other.contains(one)) continue;
        const wide = Math.min(a.right, b.right) - Math.max(a.left, b.left), tall = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (wide > 3 && tall > 5) found.push(`overlaps: ${named(one)} and ${named(other)}`);
    }
    if (!panel.textContent.trim()) found.push("blank");
    return [...new Set(found)].slice(0, 8);
}
