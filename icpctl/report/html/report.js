"use strict";
// Sorting, filtering and folding of the tables; without this the page has all that it has, in the order of the report.
document.documentElement.classList.add("scripted");

const words = new Intl.Collator("en", { numeric: true });

function sortBy(table, column, direction) {
  const body = table.tBodies[0];
  const key = (row) => {
    const cell = row.cells[column];
    if ("n" in cell.dataset) return Number(cell.dataset.n);
    return cell.textContent === "–" ? NaN : cell.textContent;
  };
  const compare = (a, b) => {
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b); // what is missing comes last
    if (typeof a === "string") return direction * words.compare(a, b);
    return direction * (a - b || 0); // of two infinities neither is more
  };
  const rows = Array.from(body.rows, (row) => [key(row), row]);
  rows.sort((a, b) => compare(a[0], b[0]));
  body.append(...rows.map((each) => each[1]));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headings = Array.from(table.tHead.rows[0].cells);
  headings.forEach((heading, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = heading.textContent;
    heading.replaceChildren(button);
    button.addEventListener("click", () => {
      const descending = heading.getAttribute("aria-sort") === "ascending";
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", descending ? "descending" : "ascending");
      sortBy(table, column, descending ? -1 : 1);
    });
  });
}

for (const input of document.querySelectorAll("input[data-table]")) {
  const rows = Array.from(document.getElementById(input.dataset.table).tBodies[0].rows);
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const count = document.getElementById(input.id.replace("filter", "count"));
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, number) => {
      row.hidden = !wanted.every((word) => texts[number].includes(word));
      if (!row.hidden) shown += 1;
    });
    document.getElementById(input.dataset.table).classList.toggle("searched", wanted.length > 0);
    count.textContent = wanted.length ? `${shown} of ${rows.length} rows` : `${rows.length} rows`;
  });
}

const inSight = 30; // rows of a table; report.css has the number too

for (const table of document.querySelectorAll("table.sortable")) {
  const number = table.tBodies[0].rows.length;
  if (number <= inSight) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.className = "more";
  const fold = (folded) => {
    table.classList.toggle("folded", folded);
    button.setAttribute("aria-expanded", String(!folded));
    button.textContent = folded ? `Show all ${number} rows` : `Show the first ${inSight} rows`;
  };
  button.setAttribute("aria-controls", table.id);
  button.addEventListener("click", () => fold(!table.classList.contains("folded")));
  fold(true);
  table.closest(".scroll").after(button);
}
