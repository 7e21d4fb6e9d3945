"use strict";
// The table of a page: filters, order, pages, and one image at a time. Texts become text nodes, never markup.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const SCALE = 10000, PAGE_SIZE = 50, NONE = -1;
  const at = (id) => document.getElementById(id);
  const make = (name, text = "", settings = {}) => Object.assign(document.createElement(name), {textContent: text}, settings);
  const count = (number) => number.toLocaleString("en");
  const counted = (number) => `${count(number)} ${number === 1 ? "image" : "images"}`;

  const rows = data.names.map((_, row) => row);
  const rowOfPlace = new Map(data.places.map((place, row) => [place, row]));
  const lower = data.names.map((name) => (name === null ? "" : data.folder + name).toLowerCase());
  const lowerMessages = data.messages.map((message) => message.toLowerCase());
  const kinds = {
    label: (value) => (value === NONE ? "" : data.labels[value]),
    state: (value) => (value === NONE ? "" : data.states[value]),
    score: (value) => (value === null ? "" : (value / SCALE).toFixed(4)),
    change: (value) => (value === null ? "" : (value > 0 ? "+" : "") + (value / SCALE).toFixed(4)),
  };
  const shortName = (row) => data.names[row] ?? "(inline)";
  const nameOf = (row) => (data.names[row] === null ? "(inline)" : data.folder + data.names[row]);
  const isNumber = (column) => column.kind === "score" || column.kind === "change";

  // A line may end behind what separates the words of a file's name.
  const breakable = (name) => (name.match(/[^/\\_.\-]*[/\\_.\-]+|[^/\\_.\-]+/g) ?? [])
    .flatMap((part, number) => (number ? [make("wbr"), part] : [part]));

  let found = rows, page = 0, order = {key: null, down: false}, shown = NONE;
  let notes = null;  // those of which the failures are shown, if not of all
  let unseen = false;  // whether what is asked for is in no row

  // --- filters

  const selects = {};
  for (const column of data.columns.filter((each) => !isNumber(each))) {
    const tally = new Map();
    for (const value of data.values[column.name]) tally.set(value, (tally.get(value) || 0) + 1);
    tally.delete(NONE);
    const text = kinds[column.kind];
    const select = make("select", "", {id: `filter-${column.name}`});
    select.append(make("option", "any", {value: ""}));
    for (const value of [...tally.keys()].sort((a, b) => (text(a) < text(b) ? -1 : 1))) {
      select.append(make("option", `${text(value)} (${count(tally.get(value))})`, {value}));
    }
    addField(column.title, select);
    selects[column.name] = select;
  }
  const bounds = ["least", "most"].map((which) => {
    const input = make("input", "", {type: "number", min: 0, max: 1, step: "any", id: which});
    addField(`Score at ${which}`, input);
    return input;
  });

  function addField(title, control) {
    const field = make("div", "", {className: "field"});
    field.append(make("label", title, {htmlFor: control.id}), control);
    at("filters").append(field);
  }

  function refilter() {
    const text = at("search").value.trim().toLowerCase();
    const inMessage = lowerMessages.map((message) => message.includes(text));
    const equal = Object.entries(selects).filter(([, select]) => select.value !== "")
      .map(([name, select]) => [data.values[name], Number(select.value)]);
    const [least, most] = bounds.map((input) => (input.value === "" ? null : Math.round(Number(input.value) * SCALE)));
    const scores = data.values.score;
    found = unseen ? [] : rows.filter((row) =>
      (notes === null || notes.has(data.notes[row])) &&
      (text === "" || lower[row].includes(text) || (data.notes[row] !== NONE && inMessage[data.notes[row]])) &&
      equal.every(([values, wanted]) => values[row] === wanted) &&
      (least === null || (scores[row] !== null && scores[row] >= least)) &&
      (most === null || (scores[row] !== null && scores[row] <= most)));
    reorder();
  }

  function reorder() {
    const {key, down} = order;
    if (key !== null) {
      const column = data.columns.find((each) => each.name === key);
      const values = column === undefined ? lower : data.values[key];
      const rank = column && !isNumber(column) ? ranked(kinds[column.kind], values) : (row) => values[row];
      const empty = (row) => values[row] === null || values[row] === NONE;
      const sign = down ? -1 : 1;
      found.sort((a, b) => {  // what is empty stands last, either way; equals in the order of the input
        if (empty(a) || empty(b)) return empty(a) - empty(b) || a - b;
        const [x, y] = [rank(a), rank(b)];
        return x < y ? -sign : x > y ? sign : a - b;
      });
    }
    page = 0;
    draw();
  }

  function ranked(text, values) {
    const names = [...new Set(values)].sort((a, b) => (text(a) < text(b) ? -1 : 1));
    const ranks = new Map(names.map((value, number) => [value, number]));
    return (row) => ranks.get(values[row]);
  }

  function filterBy(wanted) {
    clear();
    for (const [name, value] of Object.entries(wanted)) {
      if (name === "notes") {
        notes = new Set(value);
        continue;
      }
      const input = selects[name] || at(name);
      input.value = String(value);
      if (input.value !== String(value)) unseen = true;  // no row has that label, so there is no such option
    }
    refilter();
    at("records").scrollIntoView();
    at("records").focus({preventScroll: true});
  }

  function clear() {
    at("filters").reset();
    notes = null;
    unseen = false;
  }

  // --- the table

  const heads = [{name: "name", title: "Image", kind: "name"}, ...data.columns].map((column) => {
    const head = make("th", "", {scope: "col", role: "columnheader"});
    const button = make("button", column.title, {type: "button"});
    button.addEventListener("click", () => {
      const down = order.key === column.name ? !order.down : isNumber(column);
      order = {key: column.name, down};
      refilter();
    });
    if (isNumber(column)) head.classList.add("number");
    head.append(button);
    at("table").tHead.rows[0].append(head);
    return [column.name, head, button, column.title];
  });

  function draw() {
    for (const [name, head, button, title] of heads) {
      if (name === order.key) head.setAttribute("aria-sort", order.down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
      button.textContent = title + (name === order.key ? (order.down ? " ↓" : " ↑") : "");
    }
    const pages = Math.max(1, Math.ceil(found.length / PAGE_SIZE));
    const start = page * PAGE_SIZE;
    at("table").tBodies[0].replaceChildren(...found.slice(start, start + PAGE_SIZE).map(tableRow));
    at("count").textContent = found.length === rows.length
      ? counted(rows.length) : `${count(found.length)} of ${counted(rows.length)}`;
    at("page").textContent = `Page ${count(page + 1)} of ${count(pages)}`;
    at("previous").disabled = page === 0;
    at("next").disabled = page >= pages - 1;
  }

  function tableRow(row) {
    const line = make("tr", "", {role: "row"});
    const cell = make("td", "", {className: "name", role: "cell"});
    const button = make("button", "", {type: "button"});
    button.append(...breakable(shortName(row)));
    button.addEventListener("click", () => show(row));
    cell.append(button);
    line.append(cell);
    for (const column of data.columns) {
      const text = kinds[column.kind](data.values[column.name][row]);
      const cell = make("td", text, {role: "cell"});
      cell.dataset.title = column.title;
      if (isNumber(column)) cell.className = "number";
      if (column.kind === "state" && (text.startsWith("fail") || text === "wrong")) cell.className = "failed";
      line.append(cell);
    }
    return line;
  }

  // --- the rows that are found, for a spreadsheet (the rule is that of output/spreadsheet.py)

  function harmless(text) {
    const bare = text.replace(/^'+/, "");
    const isNumber = /^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(bare);
    return data.csv.formula.some((start) => bare.startsWith(start)) && !isNumber ? `'${text}` : text;
  }

  function quoted(text) {
    const cell = harmless(text);
    return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
  }

  function download() {
    const head = ["image", ...data.columns.map((column) => column.name), "failure"];
    const lines = found.map((row) => [
      data.names[row] === null ? "" : nameOf(row),
      ...data.columns.map((column) => kinds[column.kind](data.values[column.name][row])),
      data.notes[row] === NONE ? "" : data.messages[data.notes[row]],
    ]);
    const text = data.csv.mark + [head, ...lines].map((cells) => `${cells.map(quoted).join(",")}\r\n`).join("");
    const href = URL.createObjectURL(new Blob([text], {type: "text/csv"}));
    make("a", "", {href, download: `${document.title}.csv`}).click();
    setTimeout(() => URL.revokeObjectURL(href), 10000);
  }

  // --- one image

  function show(row) {
    shown = row;
    const place = data.places[row];
    at("image-name").replaceChildren(...breakable(nameOf(row)));
    const picture = document.querySelector(`[data-place="${place}"] .picture`)?.cloneNode(true) ?? framed(data.pictures?.[place]);
    if (picture !== null) picture.firstElementChild.alt = `Picture of ${nameOf(row)}`;
    at("image-picture").replaceChildren(picture ?? make("p", "This page has no picture of it.", {className: "note"}));
    const link = linkOf(row);
    if (link !== null) {
      const line = make("p", "", {className: "note"});
      line.append(make("a", "Open the image itself", {href: link, target: "_blank", rel: "noreferrer"}));
      at("image-picture").append(line);
    }
    const facts = make("dl", "", {className: "facts"});
    for (const column of data.columns) {
      const text = kinds[column.kind](data.values[column.name][row]);
      if (text === "") continue;
      const pair = make("div");
      pair.append(make("dt", column.title), make("dd", text));
      facts.append(pair);
    }
    if (data.notes[row] !== NONE) {
      const pair = make("div");
      pair.append(make("dt", "Reason"), make("dd", data.messages[data.notes[row]]));
      facts.append(pair);
    }
    const charts = data.bars.filter(({rows: each}) => each[row].length)
      .flatMap(({title, rows: each}) => [make("h3", title), bars(each[row])]);
    at("image-facts").replaceChildren(facts, ...charts);
    const position = found.indexOf(row);
    at("image-previous").disabled = position < 1;
    at("image-next").disabled = position < 0 || position >= found.length - 1;
    if (!at("image").open) at("image").showModal();
  }

  function framed(source) {
    if (source === undefined) return null;
    const frame = make("span", "", {className: "picture"});
    frame.append(make("img", "", {src: source}));
    return frame;
  }

  function linkOf(row) {
    const {start, others} = data.links;
    if (row in others) return others[row];
    const name = data.names[row] === null ? null : nameOf(row);
    if (name === null || /^https?:\/\//.test(name)) return name;
    return start === null ? null : start + name.split("/").map(encodeURIComponent).join("/");
  }

  function bars(flat) {
    const list = make("ol", "", {className: "bars"});
    for (let place = 0; place < flat.length; place += 2) {
      const line = make("li");
      line.append(make("span", data.labels[flat[place]], {className: "label"}), " ",
        make("span", kinds.score(flat[place + 1]), {className: "value"}), bar(flat[place + 1] / SCALE));
      list.append(line);
    }
    return list;
  }

  function bar(share) {
    const [svg, rect] = ["svg", "rect"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
    for (const [name, value] of Object.entries({class: "bar", viewBox: "0 0 100 1", preserveAspectRatio: "none", "aria-hidden": "true"})) svg.setAttribute(name, value);
    rect.setAttribute("width", String(100 * Math.min(1, Math.max(0, share))));
    rect.setAttribute("height", "1");
    svg.append(rect);
    return svg;
  }

  function step(by) {
    const row = found[found.indexOf(shown) + by];
    if (row !== undefined && found.indexOf(shown) >= 0) show(row);
  }

  // --- what the person does

  let waiting = 0;
  at("filters").addEventListener("input", () => {
    unseen = false;
    clearTimeout(waiting);
    waiting = setTimeout(refilter, 120);
  });
  at("filters").addEventListener("submit", (event) => { event.preventDefault(); refilter(); });
  at("download").addEventListener("click", download);
  at("clear").addEventListener("click", () => { clear(); refilter(); });
  at("previous").addEventListener("click", () => { page -= 1; draw(); });
  at("next").addEventListener("click", () => { page += 1; draw(); });
  at("image-close").addEventListener("click", () => at("image").close());
  at("image-previous").addEventListener("click", () => step(-1));
  at("image-next").addEventListener("click", () => step(1));
  at("image").addEventListener("click", (event) => { if (event.target === at("image")) at("image").close(); });
  at("image").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") step(-1);
    if (event.key === "ArrowRight") step(1);
  });
  if (at("threshold")) {
    const threshold = () => Number(at("threshold").value);
    const say = () => { at("threshold-says").textContent = data.thresholds[Math.round(threshold() * 100)]; };
    at("threshold").addEventListener("input", say);
    at("threshold-form").addEventListener("submit", (event) => event.preventDefault());
    at("threshold-kept").addEventListener("click", () => filterBy({least: threshold()}));
    at("threshold-left").addEventListener("click", () => filterBy({most: (threshold() * SCALE - 1) / SCALE}));
    at("threshold-form").hidden = false;
    say();
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest("[data-filter], [data-open]");
    if (button === null) return;
    if (button.dataset.filter) filterBy(JSON.parse(button.dataset.filter));
    else show(rowOfPlace.get(Number(button.dataset.open)));
  });
  draw();
})();
