// What a classifier or a regression says of one row.

import { bars, el, percent } from "./elements.js";

const MOST = 12; // bars

/** A place for answers; `show` takes a `PredictResponse`, and gives its words. */
export function answers({ codec }) {
  const { classes } = codec;
  const many = classes.length > MOST;
  const headline = el("p", { className: "headline" }, "–");
  const list = el("div", {});
  const fixed = codec.scores && !many ? bars("Probability of each class", classes) : null;
  if (fixed) {
    fixed.show(null);
    list.append(fixed.node);
  }

  function show(answer) {
    if (!answer) {
      headline.textContent = "–";
      fixed?.show(null);
      return "";
    }
    const [said] = answer.predictions;
    if (!said) {
      const rows = Object.entries(answer.outputs).map(([name, values]) => [
        el("dt", {}, name),
        el("dd", {}, JSON.stringify(values)),
      ]);
      list.replaceChildren(el("dl", {}, rows.flat()));
      headline.textContent = "Arrays";
      return "answered";
    }
    if ("value" in said) headline.textContent = `${said.value.toPrecision(4)} ${said.unit}`.trim();
    else if ("score" in said) headline.textContent = `${said.class} (score ${said.score.toPrecision(3)})`;
    else {
      headline.textContent = `${said.class} · ${percent(said.probability)}`;
      if (fixed) fixed.show(classes.map((name) => said.probabilities[name]));
      else list.replaceChildren(best(said.probabilities));
    }
    return headline.textContent;
  }

  return { node: el("div", {}, headline, list), show };
}

function best(probabilities) {
  const rows = Object.entries(probabilities).sort((one, other) => other[1] - one[1]).slice(0, MOST);
  const drawn = bars("The most probable classes", rows.map(([name]) => name));
  drawn.show(rows.map(([, value]) => value));
  return drawn.node;
}
