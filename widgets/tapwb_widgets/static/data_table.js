// A small table: sorted by its headings, walked through by keyboard, one row selected.
//
// Cells enter the page through textContent only.

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** Order of two cells: as numbers where both begin with one, after them the rest as text. */
function compare(one, other) {
  const [a, b] = [Number.parseFloat(one), Number.parseFloat(other)];
  if (Number.isNaN(a) !== Number.isNaN(b)) return Number.isNaN(a) ? 1 : -1;
  return Number.isNaN(a) ? one.localeCompare(other) : a - b;
}

function render({ model, el }) {
  const frame = element("div", "tapwb-data");
  const table = element("table", "tapwb-data-table");
  const head = table.createTHead().insertRow();
  const body = table.createTBody();
  frame.append(table);
  el.append(frame);
  let sorted = { column: -1, down: false };
  let order = [];

  const names = ["columns", "rows", "numbers", "label", "empty", "color_scheme"];
  const rowNodes = () => Array.from(body.querySelectorAll("tr[data-row]"));

  function select(row) {
    model.set("selected", row);
    model.save_changes();
  }

  function mark() {
    const selected = model.get("selected");
    const nodes = rowNodes();
    const stop = nodes.find((node) => Number(node.dataset.row) === selected) ?? nodes[0];
    for (const node of nodes) {
      node.setAttribute("aria-selected", String(Number(node.dataset.row) === selected));
      node.tabIndex = node === stop ? 0 : -1;
    }
  }

  function sortBy(column) {
    sorted = { column, down: sorted.column === column ? !sorted.down : model.get("numbers").includes(column) };
    draw();
    head.cells[column].querySelector("button").focus();
  }

  function heading(text, column) {
    const cell = element("th", model.get("numbers").includes(column) ? "tapwb-data-number" : "");
    cell.scope = "col";
    const ours = sorted.column === column;
    cell.setAttribute("aria-sort", ours ? (sorted.down ? "descending" : "ascending") : "none");
    const button = element("button", "", text);
    button.type = "button";
    button.addEventListener("click", () => sortBy(column));
    cell.append(button);
    return cell;
  }

  function line(index) {
    const row = element("tr");
    row.dataset.row = String(index);
    model.get("rows")[index].forEach((text, column) => {
      row.append(element("td", model.get("numbers").includes(column) ? "tapwb-data-number" : "", String(text)));
    });
    row.addEventListener("click", () => select(index));
    return row;
  }

  function draw() {
    frame.dataset.scheme = model.get("color_scheme");
    table.setAttribute("aria-label", model.get("label"));
    table.setAttribute("role", "grid");
    head.replaceChildren(...model.get("columns").map(heading));
    const rows = model.get("rows");
    order = rows.map((_, index) => index);
    if (sorted.column >= 0) {
      const sign = sorted.down ? -1 : 1;
      order.sort((a, b) => sign * compare(String(rows[a][sorted.column]), String(rows[b][sorted.column])));
    }
    if (order.length) {
      body.replaceChildren(...order.map(line));
    } else {
      const cell = element("td", "tapwb-data-empty", model.get("empty"));
      cell.colSpan = Math.max(1, model.get("columns").length);
      const row = element("tr");
      row.append(cell);
      body.replaceChildren(row);
    }
    mark();
  }

  body.addEventListener("keydown", (event) => {
    const nodes = rowNodes();
    const at = nodes.indexOf(event.target.closest("tr[data-row]"));
    if (at < 0) return;
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: nodes.length - 1 }[event.key];
    if (to !== undefined && nodes[to]) {
      nodes.forEach((node) => { node.tabIndex = -1; });
      nodes[to].tabIndex = 0;
      nodes[to].focus();
    } else if (event.key === "Enter" || event.key === " ") {
      select(Number(nodes[at].dataset.row));
    } else if (to === undefined) {
      return;
    }
    event.preventDefault();
  });

  let due = false;
  const later = () => {
    if (due) return;
    due = true;
    Promise.resolve().then(() => { due = false; draw(); });
  };
  names.forEach((name) => model.on(`change:${name}`, later));
  model.on("change:selected", mark);
  draw();
  return () => {
    names.forEach((name) => model.off(`change:${name}`, later));
    model.off("change:selected", mark);
  };
}

export default { render };
