// A bar that stays in view at the lower edge while what it belongs to is longer than the page. `position: sticky` would do
// it, but a cell's output is a scrolling box of its own in most notebooks, and sticks to that.

import { el } from "./dom.js";

export class InView {
  constructor(className) {
    this.bar = el("div", { class: className });
    this.place = el("div", {}, this.bar);
    this.onScroll = () => {
      if (this.frame) return;
      this.frame = requestAnimationFrame(() => {
        this.frame = null;
        this.move();
      });
    };
  }

  node(...children) {
    this.bar.append(...children);
    return this.place;
  }

  watch() {
    document.addEventListener("scroll", this.onScroll, { capture: true, passive: true });
    addEventListener("resize", this.onScroll);
    this.sizes = new ResizeObserver(this.onScroll);
    this.sizes.observe(this.place.parentNode);
  }

  /** As far up as it takes to be seen, and never above what it belongs to. */
  move() {
    const own = this.place.getBoundingClientRect();
    const room = own.top - this.place.parentNode.getBoundingClientRect().top;
    const up = Math.min(room, Math.max(0, own.bottom - edge(this.place)));
    this.bar.style.transform = up > 1 ? `translateY(${-up}px)` : "";
    this.bar.classList.toggle("nbt-floats", up > 1);
  }

  end() {
    document.removeEventListener("scroll", this.onScroll, { capture: true });
    removeEventListener("resize", this.onScroll);
    this.sizes.disconnect();
    cancelAnimationFrame(this.frame);
  }
}

/** The lower edge of the boxes that scroll around a node. */
function edge(node) {
  let lowest = innerHeight;
  for (let box = node.parentElement; box; box = box.parentElement) {
    if (box.scrollHeight > box.clientHeight + 1 && /auto|scroll/.test(getComputedStyle(box).overflowY)) lowest = Math.min(lowest, box.getBoundingClientRect().bottom);
  }
  return lowest;
}
