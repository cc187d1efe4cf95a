// Models that are asked with plain numbers: a slider for each, or the arrays themselves.

import { answers } from "./answers.js";
import { bars, button, card, el, field, slider } from "./elements.js";
import { latest } from "./server.js";

const MOST = 64; // sliders

export function numbers(context) {
  const { model, samples, report, ask } = context;
  const { actions } = model.codec;
  const acts = actions ? bars("What each action is worth", actions.names, { format: (value) => value.toFixed(2) }) : null;
  const said = answers(model);
  const rows = samples.rows.length ? samples.rows : [middle(model.signature.inputs)];
  const inputs = model.signature.inputs.map((spec) => input(spec, rows, () => look()));
  let number = 0;

  const look = latest(async () => {
    try {
      const given = Object.fromEntries(inputs.map(({ name, read }) => [name, read()]));
      const found = await question(ask, model, given);
      const answer = await found.json();
      if (!acts) {
        report.done(said.show(model.kind === "classification" ? answer : arrays(answer)), found.ms, true);
        return;
      }
      const [{ name, q_values }] = answer.actions;
      const values = actions.names.map((one) => q_values[one]);
      acts.show(values, Math.max(...values.map(Math.abs), 1e-9));
      report.done(name, found.ms, true);
    } catch (error) {
      report.failed(error);
    }
  });

  function next() {
    number = (number + 1) % rows.length;
    for (const { name, write } of inputs) write(rows[number][name]);
    look();
  }

  look();
  return [
    card(
      "Inputs",
      "tall",
      rows.length > 1 ? el("div", { className: "row" }, button("Next recorded row", next)) : null,
      inputs.map(({ node }) => node),
    ),
    card("What it says", "still", acts ? acts.node : said.node),
  ];
}

/** The values of one input: of a short row of floats a slider each. */
function input(spec, rows, changed) {
  const [first] = rows;
  const row = first[spec.name];
  const flat = spec.dtype.startsWith("float") && spec.shape.length === 2 && row.length <= MOST;
  if (!flat) {
    const typed = el("textarea", { rows: 4, oninput: changed, spellcheck: false });
    const write = (value) => {
      typed.value = JSON.stringify(value);
    };
    write(row);
    const read = () => {
      try {
        return JSON.parse(typed.value);
      } catch {
        throw new Error(`Input '${spec.name}' is not JSON yet.`);
      }
    };
    return { name: spec.name, node: field(`${spec.name}, ${describe(spec)}`, typed), read, write };
  }
  const sliders = row.map((value, place) => {
    const [min, max] = range(spec, rows.map((one) => one[spec.name][place]));
    const digits = Math.max(0, 3 - Math.floor(Math.log10(max - min)));
    return slider(`${spec.name} ${place + 1}`, { min, max, value, digits: Math.min(digits, 6) }, changed);
  });
  return {
    name: spec.name,
    node: el("div", { className: "sliders" }, sliders.map(({ node }) => node)),
    read: () => sliders.map(({ value }) => value),
    write: (values) => values.forEach((value, place) => (sliders[place].value = value)),
  };
}

/** What one slider spans: what was recorded and half as much again, inside the signature's range. */
function range({ low, high }, values) {
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const more = (most - least) / 4;
  const [from, to] = more ? [least - more, most + more] : [low ?? least - 1, high ?? most + 1];
  const span = [Math.min(least, Math.max(from, low ?? from)), Math.max(most, Math.min(to, high ?? to))];
  return span[1] > span[0] ? span : [least, least + 1];
}

function describe({ dtype, shape }) {
  return `${dtype} [${shape.slice(1).map((size) => size.name ? `${size.name} ${size.min}..${size.max}` : size).join(", ")}]`;
}

/** A row of the middle of each input's range, of usual sizes. */
function middle(inputs) {
  const fill = (sizes, value) =>
    sizes.length ? Array.from({ length: sizes[0] }, () => fill(sizes.slice(1), value)) : value;
  return Object.fromEntries(
    inputs.map(({ name, dtype, shape, low, high }) => {
      const value = ((low ?? 0) + (high ?? 0)) / 2;
      const sizes = shape.slice(1).map((size) => size.opt ?? size);
      return [name, fill(sizes, dtype.startsWith("float") ? value : Math.round(value))];
    }),
  );
}

function question(ask, model, given) {
  const batched = Object.entries(given).map(([name, row]) => [name, [row]]);
  if (model.codec.actions) {
    return ask("act", { json: { model: model.name, observation: Object.values(given)[0] } });
  }
  if (model.kind === "classification") {
    return ask("predict", { json: { model: model.name, inputs: Object.fromEntries(batched) } });
  }
  const inputs = model.signature.inputs.map(({ name, dtype }) => {
    const rows = [given[name]];
    return { name, datatype: datatype(dtype), shape: shapeOf(rows), data: rows };
  });
  return ask(`v2/models/${model.name}/infer`, { json: { inputs } });
}

/** The Open Inference Protocol's answer in the form of `/predict`'s. */
function arrays({ outputs }) {
  return { predictions: [], outputs: Object.fromEntries(outputs.map(({ name, data }) => [name, data])) };
}

function datatype(dtype) {
  return dtype === "bool" ? "BOOL" : dtype.replace(/^float/, "FP").toUpperCase();
}

function shapeOf(value) {
  return Array.isArray(value) ? [value.length, ...shapeOf(value[0])] : [];
}
