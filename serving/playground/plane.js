// A plane to choose two numbers on with mouse, finger or arrow keys.

import { el } from "./elements.js";

/** The plane from -reach to reach; `grow` makes it wider. */
export function plane(reach, moved) {
  const point = el("span", { className: "point", "aria-hidden": "true" });
  const node = el(
    "div",
    {
      className: "plane",
      tabIndex: 0,
      role: "application",
      "aria-label": "Plane of two latents: arrow keys move the point",
    },
    point,
  );
  let at = { x: 0, y: 0 };

  function show(x, y) {
    at = { x, y };
    const share = (value) => `${((Math.max(-reach, Math.min(reach, value)) + reach) / (2 * reach)) * 100}%`;
    point.style.left = share(x);
    point.style.top = share(-y);
  }

  function go(x, y) {
    const inside = (value) => Math.max(-reach, Math.min(reach, value));
    show(inside(x), inside(y));
    moved(at.x, at.y);
  }

  function follow(event) {
    const box = node.getBoundingClientRect();
    const part = (place, from, size) => ((place - from) / size) * 2 * reach - reach;
    go(part(event.clientX, box.left, box.width), -part(event.clientY, box.top, box.height));
  }

  node.addEventListener("pointerdown", (event) => {
    node.setPointerCapture(event.pointerId);
    follow(event);
  });
  node.addEventListener("pointermove", (event) => {
    if (node.hasPointerCapture(event.pointerId)) follow(event);
  });
  node.addEventListener("keydown", (event) => {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] };
    if (!(event.key in arrows)) return;
    event.preventDefault();
    const [x, y] = arrows[event.key].map((part) => (part * reach) / 20);
    go(at.x + x, at.y + y);
  });
  show(0, 0);
  return {
    node,
    show,
    grow(further) {
      reach = further;
    },
  };
}
