// The token strip: every token with its importance (tint) and its bits (underline and small number).
//
// One module for both homes: JupyterLab (anywidget) and the dashboard (Panel). It uses only `el`, needs no network, and
// lets model text into the page through textContent alone, so that no token can become markup.

const STEPS = 32;
const CONTROL = /[\u0000-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2028\u2029\u2060\u2066-\u2069\ufeff]/u;
let serial = 0;

/** A piece of text as drawn: blanks, line ends and invisible characters become visible signs. */
function visible(text, showBlanks) {
  let out = "";
  for (const sign of text) {
    if (sign === " ") out += showBlanks ? "\u2423" : "\u00a0";
    else if (sign === "\n") out += showBlanks ? "\u21b5" : "";
    else if (sign === "\t") out += showBlanks ? "\u21e5" : "\u2003";
    else if (CONTROL.test(sign)) out += `<U+${sign.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}>`;
    else out += sign;
  }
  return out;
}

/** Cells for pieces that came without them: ends shared by tokens and graphemes. */
function cutCells(pieces) {
  const text = pieces.join("");
  const ends = new Set();
  for (const part of new Intl.Segmenter("th", { granularity: "grapheme" }).segment(text)) {
    ends.add(part.index + part.segment.length);
  }
  const cells = [];
  const cellOfToken = [];
  let open = "";
  let place = 0;
  for (const piece of pieces) {
    cellOfToken.push(cells.length);
    open += piece;
    place += piece.length;
    if (ends.has(place) || place === text.length) {
      cells.push(open);
      open = "";
    }
  }
  if (open) cells.push(open);
  return { cells, cellOfToken };
}

/** For each token the first and last token of the word or line that is tinted and selected with it. */
function groupsOf(granularity, cells, tokensOfCell, count) {
  const groups = Array.from({ length: count }, (_, token) => [token, token]);
  if (granularity !== "word" && granularity !== "line") return groups;
  const starts = new Set([0]);
  const text = cells.join("");
  if (granularity === "word") {
    for (const part of new Intl.Segmenter("th", { granularity: "word" }).segment(text)) starts.add(part.index);
  } else {
    for (let i = 0; i < text.length; i += 1) if (text[i] === "\n") starts.add(i + 1);
  }
  let place = 0;
  let first = 0;
  const close = (end) => {
    for (let token = first; token < end; token += 1) groups[token] = [first, end - 1];
    first = end;
  };
  cells.forEach((cell, index) => {
    const tokens = tokensOfCell[index];
    if (index > 0 && tokens.length && starts.has(place)) close(tokens[0]);
    place += cell.length;
  });
  close(count);
  return groups;
}

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function bitsText(values) {
  const known = values.filter((bits) => bits > 0);
  if (!known.length) return "";
  const low = Math.min(...known);
  const high = Math.max(...known);
  return low === high ? `${low}` : `${low}–${high}`;
}

function render({ model, el }) {
  serial += 1;
  const prefix = `tapwb-strip-${serial}-`;
  const root = element("div", "tapwb-strip");
  const list = element("div", "tapwb-list");
  const tip = element("div", "tapwb-tip");
  const legend = element("div", "tapwb-legend");
  list.setAttribute("role", "listbox");
  list.setAttribute("aria-multiselectable", "true");
  list.tabIndex = 0;
  tip.setAttribute("role", "tooltip");
  tip.id = `${prefix}tip`;
  tip.hidden = true;
  root.append(list, tip, legend);
  el.append(root);

  let cells = [];
  let tokensOfCell = [];
  let cellOfToken = [];
  let cellNodes = [];
  let options = [];
  let groups = [];
  let ranks = [];
  let pointed = -1;
  let dragFrom = -1;

  const get = (name) => model.get(name);
  const label = (english) => (get("labels") || {})[english] || english;
  const count = () => get("pieces").length;
  const mean = (values) => values.reduce((sum, value) => sum + value, 0) / values.length;

  function describe(token) {
    const scores = get("scores");
    const bits = get("bits");
    const lines = [`${label("token")} ${token}: ${visible(get("pieces")[token], true)}`];
    if (get("special").includes(token)) lines.push(label("special token"));
    if (get("token_ids").length) lines.push(`${label("id")}: ${get("token_ids")[token]}`);
    if (get("bytes_hex").length) lines.push(`${label("bytes")}: ${get("bytes_hex")[token]}`);
    if (scores.length) {
      const name = get("signal") ? ` (${get("signal")})` : "";
      lines.push(`${label("importance")}${name}: ${scores[token].toFixed(2)}`);
      lines.push(`${label("rank")}: ${ranks[token]} / ${scores.length}`);
    }
    if (bits.length) lines.push(`${label("bits")}: ${bits[token]}`);
    if (get("kept")[token]) lines.push(get("kept")[token]);
    return lines;
  }

  function build() {
    const pieces = get("pieces");
    cells = get("cells");
    cellOfToken = get("cell_of_token");
    if (!cells.length || cellOfToken.length !== pieces.length) ({ cells, cellOfToken } = cutCells(pieces));
    tokensOfCell = cells.map(() => []);
    cellOfToken.forEach((cell, token) => tokensOfCell[cell].push(token));
    cellNodes = [];
    options = new Array(pieces.length);
    const made = document.createDocumentFragment();
    cells.forEach((text, index) => {
      const tokens = tokensOfCell[index];
      const cell = element("span", "tapwb-cell");
      cell.append(element("span", "tapwb-text"), element("sub", "tapwb-bits"));
      const bars = element("span", "tapwb-bars");
      tokens.forEach((token) => {
        const option = tokens.length === 1 ? cell : element("span", "");
        if (tokens.length > 1) bars.append(option);
        option.append(element("i", "tapwb-bar"));
        option.classList.add("tapwb-option");
        option.setAttribute("role", "option");
        option.id = `${prefix}${token}`;
        option.dataset.token = token;
        options[token] = option;
      });
      if (tokens.length === 1) bars.append(cell.querySelector(".tapwb-bar"));
      else cell.setAttribute("role", "group");
      cell.append(bars);
      cell.dataset.first = tokens[0];
      cellNodes.push(cell);
      made.append(cell);
      if (text.includes("\n")) made.append(element("br"));
    });
    list.replaceChildren(made);
    if (!pieces.length) list.append(element("span", "tapwb-empty", label("No tokens yet.")));
    list.setAttribute("aria-label", label("Tokens"));
    texts();
    paint();
  }

  function texts() {
    const show = get("show_whitespace");
    const special = new Set(get("special"));
    cells.forEach((text, index) => {
      cellNodes[index].querySelector(".tapwb-text").textContent = visible(text, show);
      cellNodes[index].classList.toggle("tapwb-special", special.has(tokensOfCell[index][0]));
    });
  }

  function paint() {
    const scores = get("scores");
    const bits = get("bits");
    const kept = get("kept");
    const gamma = get("gamma") || 1;
    const known = scores.length === count();
    groups = groupsOf(get("granularity"), cells, tokensOfCell, count());
    const order = scores.map((score, token) => [score, token]).sort((a, b) => b[0] - a[0]);
    ranks = new Array(scores.length);
    order.forEach(([, token], place) => { ranks[token] = place + 1; });
    cellNodes.forEach((cell, index) => {
      const tokens = tokensOfCell[index];
      const tint = cell.classList.contains("tapwb-special") ? "tapwb-cell tapwb-special" : "tapwb-cell";
      let step = "";
      if (known) {
        const [first, last] = groups[tokens[0]];
        const shared = first === last ? tokens : Array.from({ length: last - first + 1 }, (_, i) => first + i);
        const score = Math.min(1, Math.max(0, mean(shared.map((token) => scores[token]))));
        step = ` tapwb-i${Math.floor((STEPS - 1) * score ** gamma + 0.5)}`;
      }
      const option = tokens.length === 1 ? " tapwb-option" : "";
      const pin = tokens.some((token) => kept[token]) ? " tapwb-kept" : "";
      cell.className = `${tint}${step}${option}${pin}`;
      cell.querySelector(".tapwb-bits").textContent = bits.length ? bitsText(tokens.map((token) => bits[token])) : "";
      const bars = cell.querySelectorAll(".tapwb-bar");
      tokens.forEach((token, place) => {
        const height = bits.length ? Math.max(1, Math.min(16, bits[token])) : 0;
        bars[place].style.height = `${tokens.length > 1 ? Math.ceil(height / 3) : Math.ceil(height / 1.5)}px`;
      });
    });
    options.forEach((option, token) => option.setAttribute("aria-label", describe(token).join(", ")));
    drawLegend(known, bits.length > 0, kept.some((reason) => reason));
    select();
  }

  function drawLegend(tinted, underlined, pinned) {
    legend.replaceChildren();
    if (tinted) {
      legend.append(element("span", "", label("less important")));
      const scale = element("span", "tapwb-scale");
      scale.setAttribute("aria-hidden", "true");
      for (let step = 0; step < STEPS; step += 2) scale.append(element("i", `tapwb-i${step}`));
      legend.append(scale, element("span", "", label("more important")));
    }
    if (underlined) legend.append(element("span", "tapwb-note", label("underline and small number: bits")));
    if (pinned) {
      const note = element("span", "tapwb-note");
      const sign = element("i", "tapwb-kept-sign");
      sign.setAttribute("aria-hidden", "true");
      note.append(sign, document.createTextNode(` ${label("bits kept, whatever the importance")}`));
      legend.append(note);
    }
  }

  function select() {
    const [first, last] = get("span").length === 2 ? get("span") : [-1, -1];
    const focused = get("focused");
    const pinned = get("pinned");
    options.forEach((option, token) => {
      const chosen = token >= first && token <= last && first >= 0;
      option.setAttribute("aria-selected", chosen ? "true" : "false");
      option.classList.toggle("tapwb-focused", token === focused);
      option.classList.toggle("tapwb-pinned", token === pinned);
    });
    if (focused >= 0 && options[focused]) list.setAttribute("aria-activedescendant", options[focused].id);
    else list.removeAttribute("aria-activedescendant");
    showTip();
  }

  function showTip() {
    const pinned = get("pinned");
    const within = el.getRootNode().activeElement === list;
    const token = pointed >= 0 ? pointed : pinned >= 0 ? pinned : within ? get("focused") : -1;
    const anchor = options[token];
    if (!anchor) {
      tip.hidden = true;
      return;
    }
    tip.replaceChildren(...describe(token).map((line) => element("div", "", line)));
    tip.hidden = false;
    const box = anchor.getBoundingClientRect();
    const frame = root.getBoundingClientRect();
    const left = Math.min(box.left - frame.left, Math.max(0, frame.width - tip.offsetWidth));
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${box.bottom - frame.top + 6}px`;
  }

  function choose(token, extend) {
    if (token < 0 || token >= count()) return;
    const span = get("span");
    const before = get("focused");
    const [first, last] = groups[token];
    let chosen = [first, last];
    if (extend && span.length === 2 && before >= 0) {
      const anchor = before === span[0] ? span[1] : span[0];
      chosen = [Math.min(anchor, first), Math.max(anchor, last)];
    }
    model.set("span", chosen);
    model.set("focused", token);
    model.save_changes();
    select();
  }

  function clear() {
    model.set("span", []);
    model.set("pinned", -1);
    model.save_changes();
    pointed = -1;
    select();
  }

  function tokenAt(event) {
    const path = event.composedPath();
    const option = path.find((node) => node.dataset && node.dataset.token !== undefined);
    if (option) return Number(option.dataset.token);
    const cell = path.find((node) => node.dataset && node.dataset.first !== undefined);
    return cell ? Number(cell.dataset.first) : -1;
  }

  const onKey = (event) => {
    const now = get("focused");
    const last = count() - 1;
    const moves = { ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1, Home: 0, End: last };
    if (event.key in moves) {
      pointed = -1;
      choose(Math.min(last, Math.max(0, moves[event.key])), event.shiftKey);
      const at = get("focused");
      if (options[at]) options[at].scrollIntoView({ block: "nearest" });
    } else if (event.key === "Enter" && now >= 0) {
      model.set("pinned", get("pinned") === now ? -1 : now);
      model.save_changes();
      select();
    } else if (event.key === "Escape") {
      clear();
    } else {
      return;
    }
    event.preventDefault();
    event.stopPropagation();
  };
  const onDown = (event) => {
    const token = tokenAt(event);
    if (token < 0) return;
    dragFrom = token;
    choose(token, event.shiftKey);
  };
  const onMove = (event) => {
    const token = tokenAt(event);
    if (dragFrom >= 0 && event.buttons === 1 && token >= 0 && token !== get("focused")) {
      model.set("span", [Math.min(dragFrom, token), Math.max(dragFrom, token)]);
      model.set("focused", token);
      model.save_changes();
      select();
    }
    if (token !== pointed) {
      pointed = token;
      showTip();
    }
  };
  const onUp = () => { dragFrom = -1; };
  const onLeave = () => { pointed = -1; dragFrom = -1; showTip(); };
  const onFocus = () => {
    if (get("focused") < 0 && count()) choose(0, false);
    else showTip();
  };

  list.addEventListener("keydown", onKey);
  list.addEventListener("pointerdown", onDown);
  list.addEventListener("pointermove", onMove);
  list.addEventListener("pointerup", onUp);
  list.addEventListener("pointerleave", onLeave);
  list.addEventListener("focus", onFocus);
  list.addEventListener("blur", showTip);

  // Several fields may arrive together: redraw once, after all of them are in place.
  const due = new Set();
  function later(what) {
    if (!due.size) Promise.resolve().then(flush);
    due.add(what);
  }
  function flush() {
    const work = new Set(due);
    due.clear();
    root.dataset.scheme = get("color_scheme");
    if (work.has(build)) build();
    else {
      if (work.has(texts)) texts();
      if (work.has(paint)) paint();
      else if (work.has(select)) select();
    }
  }
  const watched = [];
  const watch = (names, what) => names.forEach((name) => {
    const event = `change:${name}`;
    const listener = () => later(what);
    watched.push([event, listener]);
    model.on(event, listener);
  });
  watch(["cells", "cell_of_token", "pieces", "special", "token_ids", "bytes_hex", "labels"], build);
  watch(["scores", "bits", "gamma", "granularity", "signal", "kept"], paint);
  watch(["show_whitespace"], texts);
  watch(["focused", "span", "pinned", "color_scheme"], select);

  root.dataset.scheme = get("color_scheme");
  build();
  return () => watched.forEach(([event, listener]) => model.off(event, listener));
}

export default { render };
