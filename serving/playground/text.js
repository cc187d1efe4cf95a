// Classifiers of text: type and see.

import { answers } from "./answers.js";
import { card, el, field } from "./elements.js";
import { latest } from "./server.js";

export function text({ model, report, ask }) {
  const said = answers(model);
  const typed = el("textarea", { rows: 5, oninput: () => judge(typed.value), placeholder: "Type a text" });
  const judge = latest(async (value) => {
    if (!value.trim()) {
      said.show(null);
      return;
    }
    try {
      const route = model.kind === "sequence" ? "classify" : "predict";
      const found = await ask(route, { json: { model: model.name, text: value } });
      const answer = await found.json();
      if (typed.value.trim()) report.done(said.show(answer), found.ms, true);
    } catch (error) {
      report.failed(error);
    }
  });
  return [card("Text", "", field("It is read while you type", typed)), card("What it says", "", said.node)];
}
