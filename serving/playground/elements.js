// Pieces of the page that several panels are made of.

/** An element with properties, listeners (`onclick`) and attributes (`aria-label`). */
export function el(tag, properties = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (name in node && !name.includes("-")) node[name] = value;
    else node.setAttribute(name, value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** A part of the panel; `place` is how it lies on a wide screen: "tall", "wide" or "still". */
export function card(title, place, ...children) {
  return el("section", { className: `card ${place}` }, el("h2", {}, title), ...children);
}

export function button(text, onclick, properties = {}) {
  return el("button", { type: "button", onclick, ...properties }, text);
}

/** A labelled slider that shows its value; `.value` is a number. */
export function slider(name, { min, max, step = "any", value, digits = 2 }, oninput) {
  const shown = el("output", {}, Number(value).toFixed(digits));
  const input = el("input", { type: "range", min, max, step, oninput: change });
  input.value = value;
  function change() {
    shown.value = Number(input.value).toFixed(digits);
    oninput?.(Number(input.value));
  }
  const node = el("label", { className: "slider" }, el("span", {}, name), input, shown);
  return {
    node,
    input,
    get value() {
      return Number(input.value);
    },
    set value(given) {
      input.value = given;
      shown.value = Number(input.value).toFixed(digits);
    },
  };
}

export function field(name, input, note) {
  return el(
    "label",
    { className: "field" },
    el("span", {}, name),
    input,
    note ? el("small", {}, note) : null,
  );
}

export function checkbox(name, checked, onchange) {
  const input = el("input", { type: "checkbox", checked, onchange });
  return { node: el("label", { className: "check" }, input, name), input };
}

/** Bars by name, each a share of `full`; the best one stands out. */
export function bars(label, names, { full = 1, format = percent } = {}) {
  const rows = names.map((name) => {
    const fill = el("span", { className: "fill" });
    const said = el("span", { className: "said" }, "");
    return {
      fill,
      said,
      node: el("li", {}, el("span", { className: "name" }, name), el("span", { className: "track" }, fill), said),
    };
  });
  const node = el("ul", { className: "bars", "aria-label": label }, rows.map((row) => row.node));
  function show(values, scale = full) {
    const best = values ? values.indexOf(Math.max(...values)) : -1;
    rows.forEach((row, place) => {
      const value = values ? values[place] : 0;
      row.fill.style.width = `${Math.max(0, Math.min(1, value / scale)) * 100}%`;
      row.said.textContent = values ? format(value) : "";
      row.node.classList.toggle("best", place === best);
    });
  }
  return { node, show };
}

export function percent(share) {
  const value = share * 100;
  return `${value < 10 ? value.toFixed(1) : value.toFixed(0)} %`;
}

/** Files by drop, by choice, or one of those that the model's bundle recorded; gives a Blob. */
export function chooser(context, take, what = "a picture") {
  const input = el("input", {
    type: "file",
    accept: "image/png,image/jpeg",
    "aria-label": `Choose ${what}`,
    onchange: () => input.files.length && take(input.files[0]),
  });
  const zone = el(
    "div",
    {
      className: "drop",
      ondragover: (event) => {
        event.preventDefault();
        zone.classList.add("over");
      },
      ondragleave: () => zone.classList.remove("over"),
      ondrop: (event) => {
        event.preventDefault();
        zone.classList.remove("over");
        const [file] = event.dataTransfer.files;
        if (file) take(file);
      },
    },
    el("span", {}, `Drop ${what} here (PNG or JPEG), or choose one:`),
    input,
  );
  const tries = el("div", { className: "thumbs" });
  for (let number = 0; number < context.samples.pictures; number += 1) {
    context
      .ask(`playground/models/${context.model.name}/samples/${number}`)
      .then(({ blob }) => {
        const picture = shown(`Recorded picture ${number + 1}`);
        picture.show(blob);
        const use = button("", () => take(blob), { className: "thumb", title: "Use this recorded picture" });
        use.append(picture.node);
        use.dataset.number = number;
        const after = [...tries.children].find((other) => other.dataset.number > number);
        tries.insertBefore(use, after ?? null);
      })
      .catch(context.report.failed);
  }
  const recorded = context.samples.pictures
    ? el("div", {}, el("p", { className: "note" }, "Or one that the bundle recorded, held out of training:"), tries)
    : null;
  return el("div", { className: "chooser" }, zone, recorded);
}

/** A picture that blobs are shown in, pixel by pixel; the one before is let go. */
export function shown(alt, className = "") {
  const node = el("img", { alt, className, hidden: true });
  let address = null;
  return {
    node,
    show(blob, words) {
      if (address) URL.revokeObjectURL(address);
      address = blob ? URL.createObjectURL(blob) : null;
      node.hidden = !blob;
      if (address) node.src = address;
      else node.removeAttribute("src");
      if (words) node.alt = words;
    },
  };
}
