"use strict";
// Sorting, filtering and folding of the tables, and the numbers of the figures; without this the page has all that it has, in the order of the report.
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
    button.append(...heading.childNodes);
    heading.append(button);
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

// The numbers of a figure: those of its data where the pointer is, or, by the arrow keys, of one spot after another.
const mostShown = 3; // of spots in the same place

for (const figure of document.querySelectorAll("figure[data-marks]")) {
  const { headings, words, marks } = JSON.parse(figure.dataset.marks);
  const across = "rows" in figure.dataset ? 0.02 : 1; // in a list the height decides
  const plot = figure.querySelector(".plot");
  const [cover, ring, tip] = ["cover", "ring", "tip"].map((name) => {
    const made = document.createElement("div");
    made.className = name;
    return made;
  });
  ring.hidden = tip.hidden = true;
  cover.tabIndex = 0;
  const attributes = { role: "slider", "aria-label": `Numbers of ${figure.querySelector("h3").textContent}` };
  Object.assign(attributes, { "aria-valuemin": 1, "aria-valuemax": marks.length, "aria-valuenow": 1 });
  for (const [name, value] of Object.entries(attributes)) cover.setAttribute(name, value);
  plot.append(cover, ring);
  figure.append(tip);
  let now = 0;

  const lines = ([, , which, ...cells]) => [
    ...words[which],
    ...cells.flatMap((cell, place) => (cell === "–" ? [] : [`${headings[place]}: ${cell}`])),
  ];
  cover.setAttribute("aria-valuetext", lines(marks[0]).join(", "));

  const place = () => {
    const at = ring.getBoundingClientRect();
    const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
    const below = at.bottom + 8 + tip.offsetHeight <= window.innerHeight;
    tip.style.left = `${Math.max(8, Math.min(at.right + 8, room))}px`;
    tip.style.top = `${Math.max(8, below ? at.bottom + 8 : at.top - 8 - tip.offsetHeight)}px`;
  };
  const show = (number) => {
    now = number;
    const [x, y] = marks[now];
    ring.style.left = `${x / 100}%`;
    ring.style.top = `${y / 100}%`;
    const same = marks.filter((mark) => mark[0] === x && mark[1] === y && mark !== marks[now]);
    const told = [marks[now], ...same].slice(0, mostShown).map(lines);
    if (same.length >= mostShown) told.push([`and ${same.length + 1 - mostShown} more`]);
    tip.replaceChildren(...told.map((each) => {
      const paragraph = document.createElement("p");
      paragraph.textContent = each.join("\n");
      return paragraph;
    }));
    cover.setAttribute("aria-valuenow", now + 1);
    cover.setAttribute("aria-valuetext", told.map((each) => each.join(", ")).join("; "));
    ring.hidden = tip.hidden = false;
    place();
  };
  const hide = () => {
    ring.hidden = tip.hidden = true;
  };

  const point = (event) => {
    const box = cover.getBoundingClientRect();
    const [left, top] = [event.clientX - box.left, event.clientY - box.top];
    let [nearest, least] = [0, Infinity];
    marks.forEach(([x, y], number) => {
      const away = Math.hypot(across * ((x / 10000) * box.width - left), (y / 10000) * box.height - top);
      if (away < least) [nearest, least] = [number, away];
    });
    show(nearest);
  };
  cover.addEventListener("pointermove", point);
  cover.addEventListener("pointerdown", point);
  cover.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide(); // a finger that is lifted leaves, too
  });
  cover.addEventListener("focus", () => {
    if (cover.matches(":focus-visible")) show(now);
  });
  cover.addEventListener("blur", hide);
  cover.addEventListener("keydown", (event) => {
    const to = {
      ArrowRight: now + 1, ArrowDown: now + 1, ArrowLeft: now - 1, ArrowUp: now - 1,
      PageDown: now + 10, PageUp: now - 10, Home: 0, End: marks.length - 1,
    }[event.key];
    if (event.key === "Escape") hide();
    if (to === undefined) return;
    event.preventDefault();
    show(Math.max(0, Math.min(to, marks.length - 1)));
    ring.scrollIntoView({ block: "nearest", inline: "nearest" });
    place();
  });
  document.addEventListener("scroll", () => tip.hidden || place(), { capture: true, passive: true });
}

// On paper nothing can be unfolded.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  unfolded = Array.from(document.querySelectorAll("details:not(.data, [open])"));
  for (const each of unfolded) each.open = true;
});
window.addEventListener("afterprint", () => {
  for (const each of unfolded) each.open = false;
});
