// A canvas to draw on with mouse, finger or keyboard, and its drawing as a picture for a model.

import { button, checkbox, el, slider } from "./elements.js";

const SIDE = 280;
const STEP = 8; // canvas pixels that an arrow key moves the pen

/** A drawing pad; `changed` is called after each stroke's piece. */
export function sketch({ width, height }, frame, changed) {
  const canvas = el("canvas", {
    width: SIDE,
    height: SIDE,
    className: "sketch",
    tabIndex: 0,
    role: "application",
    "aria-label": "Drawing pad",
    "aria-describedby": "sketch-keys",
  });
  const pad = canvas.getContext("2d", { willReadFrequently: true });
  const cursor = el("span", { className: "pen", "aria-hidden": "true" });
  const thick = slider("Pen", { min: 8, max: 48, step: 1, value: 24, digits: 0 });
  const framed = checkbox("Move and scale as the recorded pictures are", Boolean(frame), changed);
  let pen = { x: SIDE / 2, y: SIDE / 2 };
  let down = false;
  let empty = true;

  function wipe() {
    pad.fillStyle = "#000";
    pad.fillRect(0, 0, SIDE, SIDE);
    empty = true;
    lift();
  }

  function clear() {
    wipe();
    changed();
  }

  function line(to) {
    pad.strokeStyle = pad.fillStyle = "#fff";
    pad.lineWidth = thick.value;
    pad.lineCap = pad.lineJoin = "round";
    pad.beginPath();
    pad.moveTo(pen.x, pen.y);
    pad.lineTo(to.x, to.y);
    pad.stroke();
    empty = false;
    move(to);
    changed();
  }

  function move(to) {
    pen = to;
    cursor.style.left = `${(to.x / SIDE) * 100}%`;
    cursor.style.top = `${(to.y / SIDE) * 100}%`;
  }

  function lift() {
    down = false;
    cursor.classList.remove("down");
  }

  function spot(event) {
    const box = canvas.getBoundingClientRect();
    return {
      x: ((event.clientX - box.left) / box.width) * SIDE,
      y: ((event.clientY - box.top) / box.height) * SIDE,
    };
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.setPointerCapture(event.pointerId);
    down = true;
    move(spot(event));
    line(pen);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!down || !canvas.hasPointerCapture(event.pointerId)) return;
    for (const piece of event.getCoalescedEvents?.() ?? [event]) line(spot(piece));
  });
  for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, lift);
  canvas.addEventListener("keydown", (event) => {
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (event.key in arrows) {
      const [x, y] = arrows[event.key];
      const inside = (value) => Math.min(SIDE, Math.max(0, value));
      const to = { x: inside(pen.x + x * STEP), y: inside(pen.y + y * STEP) };
      if (down) line(to);
      else move(to);
    } else if (event.key === " ") {
      down = !down;
      cursor.classList.toggle("down", down);
      if (down) line(pen);
    } else if (event.key === "Delete" || event.key === "Backspace") clear();
    else return;
    event.preventDefault();
  });
  canvas.addEventListener("blur", lift);
  wipe();
  move(pen);

  /** The drawing as PNG of the model's size, light on dark unless the model's pictures are not. */
  async function picture() {
    const small = el("canvas", { width, height });
    const to = small.getContext("2d");
    const { light = false, share = 1 } = frame ?? {};
    to.fillStyle = "#000";
    to.fillRect(0, 0, width, height);
    to.imageSmoothingQuality = "high";
    if (light) to.filter = "invert(1)";
    const box = framed.input.checked ? inkOf(pad) : null;
    if (box) {
      const scale = (Math.min(width, height) * share) / Math.max(box.width, box.height);
      const [w, h] = [box.width * scale, box.height * scale];
      if (light) to.fillRect(0, 0, width, height);
      to.drawImage(canvas, box.left, box.top, box.width, box.height, (width - w) / 2, (height - h) / 2, w, h);
    } else to.drawImage(canvas, 0, 0, width, height);
    return new Promise((done) => small.toBlob(done, "image/png"));
  }

  const node = el(
    "div",
    { className: "pad" },
    el("div", { className: "sheet" }, canvas, cursor),
    el(
      "p",
      { className: "note", id: "sketch-keys" },
      "Draw with mouse or finger. Keyboard: arrows move, space puts the pen down and lifts it, delete clears.",
    ),
    thick.node,
    framed.node,
    button("Clear", clear),
  );
  return { node, picture, isEmpty: () => empty };
}

/** The smallest box around what is drawn; null where nothing is. */
function inkOf(pad) {
  const { data } = pad.getImageData(0, 0, SIDE, SIDE);
  let [left, right, top, bottom] = [SIDE, -1, SIDE, -1];
  for (let y = 0; y < SIDE; y += 1) {
    for (let x = 0; x < SIDE; x += 1) {
      if (data[4 * (y * SIDE + x)] > 50) {
        left = Math.min(left, x);
        right = Math.max(right, x);
        top = Math.min(top, y);
        bottom = Math.max(bottom, y);
      }
    }
  }
  return right < 0 ? null : { left, top, width: right - left + 1, height: bottom - top + 1 };
}
