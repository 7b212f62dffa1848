// Two texts beside each other, growing while a model writes, with the place where they first differ marked.
//
// Model text enters the page through textContent only.

/** Length of the common beginning, never inside a grapheme. */
function commonLength(one, other) {
  const parts = new Intl.Segmenter("th", { granularity: "grapheme" });
  const left = parts.segment(one)[Symbol.iterator]();
  const right = parts.segment(other)[Symbol.iterator]();
  let length = 0;
  for (;;) {
    const a = left.next();
    const b = right.next();
    if (a.done || b.done || a.value.segment !== b.value.segment) return length;
    length += a.value.segment.length;
  }
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function side(name) {
  const box = element("section", `tapwb-answer tapwb-${name}`);
  const title = element("h3", "tapwb-answer-title");
  const state = element("p", "tapwb-answer-state");
  const text = element("div", "tapwb-answer-text");
  text.tabIndex = 0;
  text.setAttribute("role", "region");
  box.append(title, text, state);
  return { box, title, state, text };
}

function render({ model, el }) {
  const root = element("div", "tapwb-diff");
  const sides = { candidate: side("candidate"), baseline: side("baseline") };
  root.append(sides.candidate.box, sides.baseline.box);
  el.append(root);

  function draw() {
    root.dataset.scheme = model.get("color_scheme");
    const texts = { candidate: model.get("candidate"), baseline: model.get("baseline") };
    const both = model.get("compare") && texts.candidate !== "" && texts.baseline !== "";
    const shared = both ? commonLength(texts.candidate, texts.baseline) : 0;
    // While one of the two is still growing, its end is no difference.
    const differ = both && shared < texts.candidate.length && shared < texts.baseline.length;
    for (const name of ["candidate", "baseline"]) {
      const { box, title, state, text } = sides[name];
      title.textContent = model.get(`${name}_title`);
      state.textContent = model.get(`${name}_state`);
      state.hidden = !model.get(`${name}_state`);
      text.setAttribute("aria-label", model.get(`${name}_title`));
      if (differ) {
        const mark = element("mark", "tapwb-first-difference", texts[name].slice(shared));
        mark.title = model.get("difference_label");
        mark.setAttribute("aria-label", `${model.get("difference_label")}: ${texts[name].slice(shared)}`);
        text.replaceChildren(document.createTextNode(texts[name].slice(0, shared)), mark);
      } else {
        text.textContent = texts[name];
      }
      box.hidden = !title.textContent;
    }
  }

  let due = false;
  const later = () => {
    if (due) return;
    due = true;
    Promise.resolve().then(() => { due = false; draw(); });
  };
  const names = ["candidate", "baseline", "candidate_title", "baseline_title", "candidate_state", "baseline_state",
    "compare", "difference_label", "color_scheme"];
  names.forEach((name) => model.on(`change:${name}`, later));
  draw();
  return () => names.forEach((name) => model.off(`change:${name}`, later));
}

export default { render };
