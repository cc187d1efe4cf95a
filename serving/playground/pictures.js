// Classifiers of pictures: draw or upload one, see the probabilities and the first layer's maps.

import { answers } from "./answers.js";
import { card, checkbox, chooser, el, shown } from "./elements.js";
import { latest } from "./server.js";
import { sketch } from "./sketch.js";

export function pictures(context) {
  const { model, samples, report, ask } = context;
  const { image } = model.codec;
  const said = answers(model);
  const seen = shown("What the model is asked", "seen");
  const maps = shown("Feature maps of the first layer", "maps");
  const layer = el("p", { className: "note" }, "They appear with the first picture.");
  const invert = checkbox("Invert uploaded pictures", false, () => uploaded && look(uploaded));
  let uploaded = null;
  let layered = true;

  // Without an upload the drawing as it then is; what was cleared meanwhile is not shown any more.
  const look = latest(async (upload = null) => {
    const gone = () => !upload && pad.isEmpty();
    const blob = upload ?? (await pad.picture());
    try {
      const form = new FormData();
      form.set("image", blob, "picture");
      form.set("model", model.name);
      form.set("invert", upload && invert.input.checked ? "true" : "false");
      const found = await ask("predict_image", { form });
      const answer = await found.json();
      if (gone()) return;
      seen.show(blob);
      report.done(said.show(answer), found.ms, !upload);
    } catch (error) {
      report.failed(error);
      return;
    }
    if (layered) await lookInside(blob, gone);
  });

  async function lookInside(blob, gone) {
    try {
      const found = await ask(`playground/models/${model.name}/first_layer`, { body: blob });
      if (gone()) return;
      maps.show(found.blob);
      layer.textContent = `${found.headers.get("fucina-layer")}, of the portable graph before its activation: blue below zero, white zero, red above.`;
    } catch (error) {
      if (error.name === "AbortError") return;
      layered = error.status !== 501; // It never will.
      layer.textContent = `Not shown: ${error.message}`;
      maps.show(null);
    }
  }

  const pad = image.channels === 1 ? sketch(image, samples.frame, drawn) : null;
  function drawn() {
    uploaded = null;
    if (pad.isEmpty()) {
      seen.show(null);
      maps.show(null);
      said.show(null);
      return;
    }
    look();
  }

  function take(blob) {
    uploaded = blob;
    look(blob);
  }

  const upload = card(pad ? "Or upload" : "Picture", pad ? "wide" : "tall", chooser(context, take), invert.node);
  const figure = el("figure", {}, seen.node, el("figcaption", {}, "The picture that was sent"));
  return [
    pad ? card("Draw", "tall", pad.node) : upload,
    card("What it says", "", said.node, figure),
    card("First layer", "", maps.node, layer),
    pad ? upload : null,
  ].filter(Boolean);
}
