// The page: which models there are, and the panel that fits the chosen one.

import { ask, useKey } from "./server.js";
import { el } from "./elements.js";
import { control } from "./control.js";
import { generative } from "./generative.js";
import { numbers } from "./numbers.js";
import { pictures } from "./pictures.js";
import { segmentation } from "./segmentation.js";
import { text } from "./text.js";
import { writing } from "./writing.js";

const at = (id) => document.getElementById(id);
let models = [];
let running = new AbortController();

function report(signal) {
  return {
    /** Say what came of a request; `live` answers follow each other too fast to be read out. */
    done(words, ms, live = false) {
      if (signal.aborted) return;
      at("error").hidden = true;
      at("status").setAttribute("aria-live", live ? "off" : "polite");
      at("status").value = words;
      if (ms !== undefined) at("latency").textContent = `${ms.toFixed(ms < 10 ? 1 : 0)} ms`;
    },
    failed(error) {
      if (signal.aborted || error.name === "AbortError") return;
      at("error").textContent = error.message;
      at("error").hidden = false;
      if (error.status === 401) wantKey();
    },
  };
}

function wantKey() {
  at("key").hidden = false;
  at("secret").focus();
}

function panelOf({ codec }) {
  const shape = codec.actions ? control : codec.generation ? writing : codec.pictures || codec.anomaly ? generative : null;
  return shape ?? (codec.tiled ? segmentation : codec.text ? text : codec.image ? pictures : numbers);
}

async function show(model) {
  running.abort();
  running = new AbortController();
  const { signal } = running;
  const context = {
    model,
    signal,
    report: report(signal),
    ask: (path, options = {}) => ask(path, { signal, ...options }),
  };
  context.report.done("");
  at("latency").textContent = "";
  const facts = [model.title, model.paper, `version ${model.version}`, model.target];
  at("about").textContent = facts.filter(Boolean).join(" · ");
  at("panel").replaceChildren();
  try {
    const found = await context.ask(`playground/models/${encodeURIComponent(model.name)}/samples`);
    context.samples = await found.json();
    if (signal.aborted) return;
    at("panel").replaceChildren(...panelOf(model)(context));
    if (model.problem) throw new Error(model.problem);
  } catch (error) {
    context.report.failed(error);
  }
}

async function start() {
  const { signal } = running;
  try {
    const found = await ask("playground/models.json", { signal });
    ({ models } = await found.json());
    at("key").hidden = true;
    at("error").hidden = true;
    at("model").replaceChildren(...models.map(({ name }) => el("option", {}, name)));
    if (models.length) await show(models[0]);
    else report(signal).failed(new Error("This server has no models."));
  } catch (error) {
    report(signal).failed(error);
  }
}

at("model").addEventListener("change", () => show(models[at("model").selectedIndex]));
at("key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("secret").value);
  at("secret").value = "";
  start();
});
start();
