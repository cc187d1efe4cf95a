// Agents: one that sees four numbers and has two actions balances a pole; others are asked by hand.

import { bars, button, card, el } from "./elements.js";
import { begin, fallen, FURTHEST, POLE, SECONDS, step } from "./cartpole.js";
import { numbers } from "./numbers.js";

const PUSH = 10; // newtons, while an arrow key is held
const [WIDE, TALL] = [600, 260];

export function control(context) {
  const { model } = context;
  const { observation, names } = model.codec.actions;
  const seen = model.signature.inputs.find(({ name }) => name === observation);
  const four = seen.shape.length === 2 && seen.shape[1] === 4;
  return four && names.length === 2 ? balance(context) : numbers(context);
}

function balance({ model, report, ask, signal }) {
  const { names } = model.codec.actions;
  const canvas = el("canvas", {
    width: WIDE,
    height: TALL,
    className: "stage",
    tabIndex: 0,
    role: "application",
    "aria-label": "Cart and pole: the left and right arrow keys push the cart",
  });
  const values = bars("What each action is worth", names, { format: (value) => value.toFixed(2) });
  const count = el("output", {}, "0");
  const longest = el("output", {}, "0");
  const play = button("Play", toggle, { className: "main" });
  const pushed = { left: false, right: false };
  let state = begin();
  let steps = 0;
  let playing = false;

  async function run() {
    while (playing && !signal.aborted) {
      const next = performance.now() + SECONDS * 1000;
      try {
        const found = await ask("act", { json: { model: model.name, observation: state } });
        const [{ action, q_values }] = (await found.json()).actions;
        if (!playing || signal.aborted) return;
        state = step(state, action, PUSH * (Number(pushed.right) - Number(pushed.left)));
        steps += 1;
        values.show(...scaled(names.map((name) => q_values[name])));
        report.done(`Step ${steps}: ${names[action]}`, found.ms, true);
      } catch (error) {
        report.failed(error);
        stop();
        return;
      }
      draw();
      if (fallen(state)) {
        stop();
        report.done(`The pole fell after ${steps} steps`);
        return;
      }
      await new Promise((wait) => setTimeout(wait, Math.max(0, next - performance.now())));
    }
  }

  function toggle() {
    if (playing) {
      stop();
      return;
    }
    if (fallen(state)) reset();
    playing = true;
    play.textContent = "Pause";
    run();
  }

  function stop() {
    playing = false;
    play.textContent = fallen(state) ? "Play again" : "Play";
  }

  function reset() {
    state = begin();
    steps = 0;
    draw();
    if (!playing) play.textContent = "Play";
  }

  function push(side, on) {
    pushed[side] = on;
    hold[side].classList.toggle("held", on);
  }

  const hold = Object.fromEntries(
    ["left", "right"].map((side) => [
      side,
      button(side === "left" ? "◀ Push left" : "Push right ▶", () => {}, {
        onpointerdown: () => push(side, true),
        onpointerup: () => push(side, false),
        onpointerleave: () => push(side, false),
        onkeydown: ({ key }) => (key === " " || key === "Enter") && push(side, true),
        onkeyup: () => push(side, false),
        onblur: () => push(side, false),
      }),
    ]),
  );
  const sides = { ArrowLeft: "left", ArrowRight: "right" };
  for (const [event, on] of [["keydown", true], ["keyup", false]]) {
    canvas.addEventListener(event, (pressed) => {
      if (!(pressed.key in sides)) return;
      pressed.preventDefault();
      push(sides[pressed.key], on);
    });
  }
  canvas.addEventListener("blur", () => Object.values(sides).forEach((side) => push(side, false)));

  function draw() {
    count.value = steps;
    longest.value = Math.max(steps, Number(longest.value));
    paint(canvas, state, Number(pushed.right) - Number(pushed.left));
  }

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw, { signal });
  requestAnimationFrame(draw);
  return [
    card(
      "Cart and pole",
      "",
      canvas,
      el("div", { className: "row" }, play, button("Reset", reset), hold.left, hold.right),
      el("p", { className: "note" }, "The page steps the physics, 50 steps a second, and asks the model at each. Focus the picture and push with the arrow keys, or hold the buttons."),
    ),
    card(
      "What it does",
      "",
      el("dl", { className: "facts" }, el("dt", {}, "Steps"), el("dd", {}, count), el("dt", {}, "Longest"), el("dd", {}, longest)),
      values.node,
    ),
  ];
}

/** Values with the scale that shows them: the best full, others by how much they are worth less. */
function scaled(given) {
  return [given, Math.max(...given.map(Math.abs), 1e-9)];
}

function paint(canvas, [x, , angle], push) {
  const pad = canvas.getContext("2d");
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  const scale = WIDE / (2 * FURTHEST + 0.6);
  const [middle, floor] = [WIDE / 2 + x * scale, TALL - 50];
  pad.clearRect(0, 0, WIDE, TALL);
  pad.lineCap = "round";
  pad.strokeStyle = colour("--line");
  pad.lineWidth = 2;
  for (const side of [-FURTHEST, 0, FURTHEST]) {
    pad.beginPath();
    pad.moveTo(WIDE / 2 + side * scale, floor + 24);
    pad.lineTo(WIDE / 2 + side * scale, floor + 34);
    pad.stroke();
  }
  pad.beginPath();
  pad.moveTo(0, floor + 18);
  pad.lineTo(WIDE, floor + 18);
  pad.stroke();
  pad.fillStyle = colour("--ink");
  pad.beginPath();
  pad.roundRect(middle - 34, floor - 14, 68, 30, 6);
  pad.fill();
  pad.strokeStyle = colour("--accent");
  pad.lineWidth = 10;
  pad.beginPath();
  pad.moveTo(middle, floor - 14);
  pad.lineTo(middle + Math.sin(angle) * POLE * 150, floor - 14 - Math.cos(angle) * POLE * 150);
  pad.stroke();
  if (push) {
    pad.strokeStyle = colour("--second");
    pad.lineWidth = 4;
    const from = middle - push * 40;
    pad.beginPath();
    pad.moveTo(from - push * 36, floor);
    pad.lineTo(from, floor);
    pad.lineTo(from - push * 9, floor - 7);
    pad.moveTo(from, floor);
    pad.lineTo(from - push * 9, floor + 7);
    pad.stroke();
  }
}
