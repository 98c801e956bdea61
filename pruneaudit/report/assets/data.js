"use strict";

const PREFIXES = ["", "k", "M", "G", "T", "P", "E"];

// Reading what travels in the page, and small words for building elements. Text of records becomes text nodes only.

/** Text of a gzipped, base64-encoded script element. */
async function unpacked(id) {
  const text = atob(document.getElementById(id).textContent);
  const bytes = Uint8Array.from(text, (mark) => mark.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"))).text();
}

/** Rows of a table that came by column; of texts and lists each came once. */
function rowsOf(table) {
  const columns = Object.fromEntries(Object.entries(table)
    .map(([name, column]) => [name, Array.isArray(column) ? column : column.at.map((place) => column.of[place])]));
  const names = Object.keys(columns);
  const length = names.length ? columns[names[0]].length : 0;
  return Array.from({ length }, (_, place) => Object.fromEntries(names.map((name) => [name, columns[name][place]])));
}

/** An element with attributes and children; strings become text. */
function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") node.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Whether the page is laid out for paper. */
function isPrinting() {
  return document.documentElement.classList.contains("printing");
}

function byId(id) {
  return document.getElementById(id);
}

/** Rows by a key, in the order in which they come up. */
function grouped(rows, key) {
  const found = new Map();
  for (const row of rows) {
    const name = key(row);
    if (!found.has(name)) found.set(name, []);
    found.get(name).push(row);
  }
  return found;
}

function unique(values) {
  return [...new Set(values)];
}

function known(values) {
  return values.filter((value) => value !== null && value !== undefined);
}

/** Mean, sample standard deviation (null for one value) and number; null of nothing. */
function statistic(values) {
  const found = known(values);
  if (!found.length) return null;
  const mean = found.reduce((sum, value) => sum + value, 0) / found.length;
  const squares = found.reduce((sum, value) => sum + (value - mean) ** 2, 0);
  return { mean, std: found.length > 1 ? Math.sqrt(squares / (found.length - 1)) : null, n: found.length };
}

function fixed(value, digits = 2) {
  return value === null || value === undefined ? "" : value.toFixed(digits);
}

function signed(value, digits = 2) {
  return value === null || value === undefined ? "" : (value >= 0 ? "+" : "−") + Math.abs(value).toFixed(digits);
}

/** A large number with the prefix of a unit: 41.8 G. */
function metric(value) {
  if (value === null || value === undefined) return "";
  const place = Math.max(0, Math.min(PREFIXES.length - 1, Math.floor(Math.log10(Math.abs(value) || 1) / 3)));
  return `${short(value / 1000 ** place)}${PREFIXES[place] && ` ${PREFIXES[place]}`}`;
}

function short(value) {
  return value === null || value === undefined ? "" : String(Number(value.toPrecision(3)));
}
