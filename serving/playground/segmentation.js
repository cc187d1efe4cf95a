// Models that name the class of every pixel: a mask over the picture.

import { card, chooser, el, percent, slider } from "./elements.js";
import { latest } from "./server.js";

const MOST = 1600; // pixels of a side, shown and sent

export function segmentation(context) {
  const { model, report, ask } = context;
  const { classes, colours } = model.codec;
  const under = el("canvas", { role: "img", "aria-label": "The picture" });
  const over = el("canvas", { role: "img", "aria-label": "The class of each pixel, as a colour" });
  const both = el("div", { className: "overlay", hidden: true }, under, over);
  const empty = el("p", { className: "note" }, "Choose a picture, and its mask appears here.");
  const opacity = slider("Opacity of the mask", { min: 0, max: 1, step: 0.05, value: 0.5 }, (value) => {
    over.style.opacity = value;
  });
  over.style.opacity = 0.5;
  const legend = classes.map((name, number) => {
    const shows = el("input", { type: "checkbox", checked: true, onchange: paint });
    const swatch = el("span", { className: "swatch", "aria-hidden": "true" });
    swatch.style.background = colours[number];
    const share = el("span", { className: "said" });
    return { shows, share, node: el("li", {}, el("label", {}, shows, swatch, name), share) };
  });
  let mask = null;

  const look = latest(async (file) => {
    try {
      const picture = await createImageBitmap(file).catch(() => {
        throw new Error("The browser cannot read this file: choose a PNG or JPEG picture.");
      });
      const scale = Math.min(1, MOST / Math.max(picture.width, picture.height));
      for (const canvas of [under, over]) {
        canvas.width = Math.round(picture.width * scale);
        canvas.height = Math.round(picture.height * scale);
      }
      under.getContext("2d").drawImage(picture, 0, 0, under.width, under.height);
      // The same pixels are sent as are shown; a picture that is not made smaller, as it is.
      const sent = scale < 1 ? await new Promise((done) => under.toBlob(done, "image/png")) : file;
      const form = new FormData();
      form.set("image", sent, "picture");
      form.set("model", model.name);
      form.set("answer", "map");
      const found = await ask("segment_image", { form });
      const map = await createImageBitmap(found.blob);
      if (map.width !== over.width) [over.width, over.height] = [map.width, map.height];
      const pad = over.getContext("2d", { willReadFrequently: true });
      pad.clearRect(0, 0, over.width, over.height);
      pad.drawImage(map, 0, 0);
      mask = numbered(pad.getImageData(0, 0, over.width, over.height), colours);
      both.hidden = false;
      empty.hidden = true;
      report.done(tell(), found.ms);
      paint();
    } catch (error) {
      report.failed(error);
    }
  });

  function tell() {
    const counts = classes.map(() => 0);
    for (const number of mask.numbers) counts[number] += 1;
    const shares = counts.map((count) => count / mask.numbers.length);
    shares.forEach((share, number) => {
      legend[number].share.textContent = percent(share);
    });
    const most = shares.indexOf(Math.max(...shares));
    return `${classes[most]} has ${percent(shares[most])} of ${over.width} x ${over.height} pixels`;
  }

  function paint() {
    if (!mask) return;
    const { image, numbers } = mask;
    numbers.forEach((number, place) => {
      image.data[4 * place + 3] = legend[number].shows.checked ? 255 : 0;
    });
    over.getContext("2d").putImageData(image, 0, 0);
  }

  return [
    card("Picture", "tall", chooser(context, look)),
    card("Mask", "", empty, both, opacity.node),
    card("Classes", "", el("ul", { className: "legend" }, legend.map(({ node }) => node))),
  ];
}

/** The number of each pixel's class, by its colour. */
function numbered(image, colours) {
  const known = new Map(colours.map((colour, number) => [parseInt(colour.slice(1), 16), number]));
  const numbers = new Uint8Array(image.data.length / 4);
  for (let place = 0; place < numbers.length; place += 1) {
    const [red, green, blue] = image.data.subarray(4 * place, 4 * place + 3);
    numbers[place] = known.get((red << 16) | (green << 8) | blue) ?? 0;
  }
  return { image, numbers };
}
