// Tables that sort by a click on the head, filter by words, and show a hundred rows at a time, all that one reads on paper.

const ROWS_SHOWN = 100;
/** Rows on paper, where nobody can ask for more. */
const ROWS_PRINTED = 1000;

/**
 * Fill a place with a table.
 * columns: [{ name, head (nodes instead of the name), title, value(row) -> string or number, show(row) -> string or node, number: bool, whole: bool (no line breaks on paper) }]
 * Sorting is stable and by value: numbers by size, text by locale. Filtering is by every word, anywhere in a row.
 */
function sheet(place, columns, rows, { empty = "Nothing.", label = "", kind = null } = {}) {
  let order = null;
  let down = false;
  let words = [];
  let most = ROWS_SHOWN;
  place.replaceChildren();
  if (!rows.length) {
    place.append(el("p", { class: "empty" }, empty));
    return;
  }
  const text = (row, column) => String(column.value(row) ?? "");
  const haystacks = new Map();
  const haystack = (row) => {
    if (!haystacks.has(row)) haystacks.set(row, columns.map((column) => text(row, column)).join(" ").toLowerCase());
    return haystacks.get(row);
  };
  const count = el("span", { class: "count", role: "status" });
  const filter = el("input", { type: "search", placeholder: "filter", "aria-label": `Filter ${label}` });
  const heads = columns.map((column, number) =>
    el("th", { scope: "col", class: column.number ? "number" : null },
      el("button", { type: "button", title: column.title, onclick: () => sort(number) }, ...(column.head ?? [column.name]))));
  const body = el("tbody");
  const more = el("button", { type: "button", class: "more", onclick: () => { most += 5 * ROWS_SHOWN; draw(); } }, "show more");
  place.append(
    el("div", { class: "bar" }, filter, count),
    el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": label },
      el("table", { class: kind }, el("thead", {}, el("tr", {}, heads)), body)),
    more,
  );
  filter.addEventListener("input", () => {
    words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    most = ROWS_SHOWN;
    draw();
  });

  function sort(number) {
    down = order === number && !down;
    order = number;
    heads.forEach((head, place) => {
      if (place === number) head.setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    });
    draw();
  }

  function compare(left, right) {
    const a = columns[order].value(left);
    const b = columns[order].value(right);
    // What was not measured comes last, whichever way is up.
    const missing = (a === null || a === undefined || a === "") - (b === null || b === undefined || b === "");
    if (missing) return missing;
    const sign = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
    return down ? -sign : sign;
  }

  function draw() {
    const limit = isPrinting() ? Math.max(most, ROWS_PRINTED) : most;
    let found = words.length ? rows.filter((row) => words.every((word) => haystack(row).includes(word))) : rows;
    if (order !== null) found = [...found].sort(compare);
    body.replaceChildren(...found.slice(0, limit).map((row) =>
      el("tr", {}, columns.map((column) =>
        el("td", { class: column.number ? "number" : column.whole ? "whole" : null }, column.show ? column.show(row) : text(row, column))))));
    const shown = Math.min(limit, found.length);
    const of = found.length === rows.length ? `${rows.length}` : `${found.length} of ${rows.length}`;
    const word = rows.length === 1 ? "row" : "rows";
    count.textContent = shown < found.length ? `first ${shown} of ${of} ${word}` : `${of} ${word}`;
    more.hidden = shown === found.length;
  }

  draw();
}

/** A table whose texts were made by the report already: header and rows of strings. */
function plainSheet(place, { header, rows }, options) {
  const numeric = header.map((_, number) => rows.length > 0 && rows.every((row) => row[number] === "" || !Number.isNaN(Number(row[number]))));
  const columns = header.map((name, number) => ({
    name,
    number: numeric[number],
    value: (row) => (numeric[number] && row[number] !== "" ? Number(row[number]) : row[number]),
    show: (row) => row[number],
  }));
  sheet(place, columns, rows, options);
}

/** Open the dialog. The browser gives the focus back when it closes. */
function openDialog(title, ...content) {
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...content);
  byId("dialog").showModal();
}
