// Models that write: a prompt, and its continuation or answer as it comes.

import { button, card, el, field, slider } from "./elements.js";
import { events } from "./server.js";

export function writing(context) {
  const { model, samples, report, ask, signal } = context;
  const { source, media, opening } = model.codec.generation;
  const prompt = el("textarea", { rows: 3, value: samples.sources[0] ?? "", placeholder: source ? "" : "Empty: the model begins by itself" });
  const temperature = slider("Temperature", { min: 0, max: 2, step: 0.05, value: source ? 0 : 0.8 });
  const most = el("input", { type: "number", min: 1, max: 4096, value: 256, required: true });
  const seed = el("input", { type: "number", min: 0, step: 1, placeholder: "drawn" });
  const stop = el("input", { type: "text", placeholder: "none" });
  const begin = el("button", { className: "main" }, source ? "Answer" : "Write");
  const cancel = button("Cancel", () => run?.abort(), { disabled: true });
  const midi = media === "abc" ? button("Save as MIDI", save) : null;
  const asked = el("span", { className: "asked" });
  const written = el("span", {});
  const text = el("pre", { className: "text", tabIndex: 0, "aria-label": "Written text" }, asked, written);
  const facts = el("p", { className: "note" }, "\u00a0");
  let run = null;

  function request() {
    const fields = {
      model: model.name,
      prompt: prompt.value,
      temperature: temperature.value,
      max_tokens: Number(most.value),
    };
    if (seed.value) fields.seed = Number(seed.value);
    if (stop.value) fields.stop = stop.value.replaceAll("\\n", "\n");
    return fields;
  }

  async function write() {
    run?.abort();
    const mine = (run = new AbortController());
    const json = request();
    asked.textContent = source ? "" : prompt.value;
    written.textContent = "";
    facts.textContent = "\u00a0";
    cancel.disabled = false;
    const begun = performance.now();
    let first = null;
    try {
      const ended = AbortSignal.any([signal, mine.signal]);
      const { stream, ms } = await ask("generate", { json, signal: ended, stream: true });
      for await (const event of events(stream)) {
        if (event.error) throw new Error(event.error);
        first ??= performance.now() - begun;
        written.append(event.text);
        if (!event.finish) continue;
        const seconds = (performance.now() - begun) / 1000;
        if (!source && !json.prompt && event.prompt !== opening) asked.textContent = event.prompt;
        facts.textContent = `${event.tokens} tokens in ${seconds.toFixed(2)} s, the first after ${first.toFixed(0)} ms · seed ${event.seed} · ended by ${event.finish}`;
        report.done(`Written: ${event.tokens} tokens`, ms);
      }
    } catch (error) {
      if (error.name === "AbortError") {
        if (mine === run) report.done("Cancelled: the model has stopped writing");
      } else report.failed(error);
    } finally {
      if (mine === run) cancel.disabled = true;
    }
  }

  async function save() {
    try {
      const found = await ask("generate", { json: { ...request(), format: "midi" } });
      const link = el("a", { href: URL.createObjectURL(found.blob), download: "tune.mid" });
      link.click();
      URL.revokeObjectURL(link.href);
      report.done(`A MIDI file of seed ${found.headers.get("fucina-seed")}`, found.ms);
    } catch (error) {
      report.failed(error);
    }
  }

  const tries = samples.sources.map((value) =>
    button(value, () => {
      prompt.value = value;
      write();
    }),
  );
  const form = el(
    "form",
    {
      onsubmit: (event) => {
        event.preventDefault();
        write();
      },
    },
    field(source ? "Source" : "Prompt", prompt),
    tries.length ? el("div", { className: "row tries", role: "group", "aria-label": "Recorded sources" }, tries) : null,
    el("div", { className: "row" }, begin, cancel, midi),
    temperature.node,
    el("div", { className: "fields" }, field("Most tokens", most), field("Seed", seed), field("Stop before", stop)),
    el("p", { className: "note" }, "Temperature 0 takes the likeliest token. The same seed writes the same text."),
  );
  return [card("Ask", "", form), card(source ? "Answer" : "Text", "still", text, facts)];
}
