// Models that draw: move a code's latents, sample, reconstruct, traverse, judge.

import { button, card, checkbox, chooser, el, field, shown, slider } from "./elements.js";
import { plane } from "./plane.js";
import { latest } from "./server.js";

const REACH = 3; // at least, of a latent
const FURTHEST = 100; // the server traverses
const SOME = 8; // sliders that are shown at once
const MOST_ROWS = 10; // of a traversal

export function generative(context) {
  const { model } = context;
  const can = (route) => model.abilities.includes(route);
  const code = can("/decode") ? latents(context) : null;
  return [
    ...(code ? code.cards : []),
    can("/reconstruct") || can("/anomaly") || can("/encode") ? upload(context, code) : null,
  ].filter(Boolean);
}

function latents({ model, report, ask }) {
  const { classes, pictures } = model.codec;
  const can = (route) => model.abilities.includes(route);
  const values = new Array(model.latents).fill(0);
  const picture = shown("The picture of this code", "drawn");
  const grid = shown("Pictures", "drawn");
  const about = el("p", { className: "note" }, "");
  const label = el("select", { onchange: draw }, classes.map((name) => el("option", {}, name)));
  const axes = [0, 1].map((axis) =>
    el("select", { onchange: showPoint }, values.map((_, place) => el("option", { value: place }, `latent ${place + 1}`))),
  );
  if (values.length > 1) axes[1].selectedIndex = 1;
  const sliders = values.map((_, place) =>
    slider(`latent ${place + 1}`, { min: -REACH, max: REACH, value: 0 }, (value) => {
      values[place] = value;
      showPoint();
      draw();
    }),
  );
  const pad = plane(REACH, (x, y) => {
    [x, y].forEach((value, axis) => put(axes[axis].selectedIndex, value));
    draw();
  });
  let reach = REACH;
  const seed = el("input", { type: "number", min: 0, step: 1, placeholder: "drawn" });

  function put(place, value) {
    values[place] = value;
    sliders[place].value = value;
  }

  function showPoint() {
    pad.show(...axes.map((axis) => values[axis.selectedIndex] ?? 0));
  }

  const chosen = () => (pictures.label ? { class: label.value } : {});
  const decode = latest(async (words) => {
    try {
      const json = { model: model.name, latent: values, format: "png", scale: 4, ...chosen() };
      const found = await ask("decode", { json });
      picture.show(found.blob);
      if (words) report.done(words, found.ms, true);
    } catch (error) {
      report.failed(error);
    }
  });

  function draw() {
    return decode("Drawn");
  }

  /** Take over a whole code, however far out it lies; who had it made has its own words. */
  function set(given, words = "") {
    reach = Math.max(reach, ...given.map((value) => Math.ceil(Math.abs(value))));
    for (const { input } of sliders) [input.min, input.max] = [-reach, reach];
    pad.grow(reach);
    given.forEach((value, place) => put(place, value));
    showPoint();
    return decode(words);
  }

  async function one() {
    await attempt(async () => {
      const found = await ask("sample", { json: { model: model.name, n: 1, ...seeded(), ...chosen() } });
      const { latent, seed: told } = await found.json();
      report.done(`A sample of seed ${told}`, found.ms);
      await set(latent[0]);
    });
  }

  async function many() {
    await attempt(async () => {
      const json = { model: model.name, n: 16, format: "png", scale: 3, columns: 4, ...seeded(), ...chosen() };
      const found = await ask("sample", { json });
      grid.show(found.blob, "16 samples");
      const told = found.headers.get("fucina-seed");
      about.textContent = `16 samples of seed ${told}`;
      report.done(about.textContent, found.ms);
    });
  }

  async function traverse() {
    await attempt(async () => {
      const rows = values.map((_, place) => place).slice(0, MOST_ROWS);
      const json = { model: model.name, latent: values, latents: rows, reach: Math.min(reach, FURTHEST), steps: 9, format: "png", scale: 2, ...chosen() };
      const found = await ask("traverse", { json });
      grid.show(found.blob, `Traversal of ${rows.length} latents`);
      about.textContent = `A row for each of the ${rows.length === values.length ? "" : "first "}${rows.length} latents, from -${json.reach} to ${json.reach}`;
      report.done("Traversed", found.ms);
    });
  }

  async function attempt(work) {
    try {
      await work();
    } catch (error) {
      report.failed(error);
    }
  }

  const seeded = () => (seed.value ? { seed: Number(seed.value) } : {});
  const rest = sliders.slice(SOME).map(({ node }) => node);
  const cards = [
    card(
      "Picture",
      "",
      picture.node,
      pictures.label ? field("Class", label) : null,
      el("div", { className: "row" }, can("/sample") ? button("Sample", one, { className: "main" }) : null, button("Centre", () => set(values.map(() => 0), "The centre"))),
    ),
    card(
      "Code",
      "",
      values.length > 1 ? el("div", { className: "planes" }, pad.node, el("div", {}, field("Across", axes[0]), field("Up", axes[1]))) : null,
      el("div", { className: "sliders" }, sliders.slice(0, SOME).map(({ node }) => node)),
      rest.length ? el("details", {}, el("summary", {}, `${rest.length} more latents`), el("div", { className: "sliders" }, rest)) : null,
    ),
    card(
      "Many",
      "",
      can("/sample") ? field("Seed", seed, "the same pictures again") : null,
      el("div", { className: "row" }, can("/sample") ? button("16 samples", many) : null, can("/traverse") ? button("Traverse this code", traverse) : null),
      grid.node,
      about,
    ),
  ];
  draw();
  return { cards, set };
}

function upload(context, code) {
  const { model, report, ask } = context;
  const can = (route) => model.abilities.includes(route);
  const back = shown("The picture above its reconstruction", "drawn pair");
  const judged = el("p", { className: "headline" });
  const invert = checkbox("Invert", false, () => given && take(given));
  let given = null;

  function form(fields = {}) {
    const filled = new FormData();
    filled.set("image", given, "picture");
    for (const [name, value] of Object.entries({ model: model.name, invert: invert.input.checked, ...fields })) {
      filled.set(name, String(value));
    }
    return filled;
  }

  const work = latest(async () => {
    try {
      if (can("/reconstruct")) {
        const found = await ask("reconstruct_image", { form: form({ format: "png", scale: 4 }) });
        back.show(found.blob);
        report.done("Reconstructed", found.ms);
      }
      if (can("/anomaly")) {
        const found = await ask("anomaly_image", { form: form() });
        const { pictures, threshold } = await found.json();
        const [{ error, anomalous }] = pictures;
        judged.textContent = `${anomalous ? "An anomaly" : "Nothing unusual"}: error ${error.toPrecision(3)}, threshold ${threshold.toPrecision(3)}`;
        report.done(judged.textContent, found.ms);
      }
      if (can("/encode") && code) {
        const found = await ask("encode_image", { form: form() });
        await code.set((await found.json()).latent[0]);
      }
    } catch (error) {
      report.failed(error);
    }
  });

  function take(blob) {
    given = blob;
    work();
  }

  return card(
    can("/anomaly") ? "Reconstruct and judge" : "Reconstruct",
    "",
    chooser(context, take),
    invert.node,
    judged,
    back.node,
    can("/reconstruct") ? el("p", { className: "note" }, "Above the picture, below what the model made of its code. The code is taken over.") : null,
  );
}
