"use strict";
(() => {
  // What is folded is printed too, and folded again afterwards.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details:not([open])")];
    for (const details of opened) details.open = true;
  });
  addEventListener("afterprint", () => { for (const details of opened) details.open = false; });

  const table = document.querySelector("table.classes");
  if (!table) return;
  const body = table.tBodies[0], rows = [...body.rows], filter = document.getElementById("filter");
  const all = document.getElementById("all"), shown = document.getElementById("shown"), most = 100;
  const heads = [...table.tHead.rows[0].cells];
  const texts = rows.map((row) => row.cells[0].textContent + " " + [...row.cells[0].querySelectorAll("[title]")].map((e) => e.title).join(" "));
  const wanted = new Map(rows.map((row, i) => [row, texts[i].toLocaleLowerCase()]));
  const whole = new Map(rows.map((row) => [row, row.cells[0].querySelector("bdi").title || row.cells[0].querySelector("bdi").textContent]));

  function update() {
    const part = filter.value.trim().toLocaleLowerCase(), everything = all && all.getAttribute("aria-pressed") === "true";
    let found = 0;
    for (const row of body.rows) {
      const match = wanted.get(row).includes(part);
      row.hidden = !match;
      found += match;
      row.classList.toggle("more", match && !everything && found > most);
    }
    const visible = everything ? found : Math.min(found, most);
    shown.textContent = `${visible} of ${rows.length} classes` + (part ? ` (${found} match)` : "");
  }

  function sort(at) {
    const head = heads[at], text = head.classList.contains("text");
    const rising = head.getAttribute("aria-sort") !== "ascending", sign = rising ? 1 : -1;
    const key = (row) => at === 0 ? whole.get(row) : text ? row.cells[at].textContent : parseFloat(row.cells[at].textContent);
    const pairs = [...body.rows].map((row) => [key(row), row]);
    // What is not defined stays last, whichever way the rest is sorted.
    pairs.sort(([a], [b]) => text ? sign * a.localeCompare(b, undefined, { numeric: true })
      : Number.isNaN(a) || Number.isNaN(b) ? Number.isNaN(a) - Number.isNaN(b) : sign * (a - b));
    body.append(...pairs.map(([, row]) => row));
    for (const other of heads) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", rising ? "ascending" : "descending");
    update();
  }

  heads.forEach((head, at) => head.querySelector("button")?.addEventListener("click", () => sort(at)));
  filter.addEventListener("input", update);
  all?.addEventListener("click", () => {
    const pressed = all.getAttribute("aria-pressed") !== "true";
    all.setAttribute("aria-pressed", String(pressed));
    all.textContent = pressed ? `Show ${most}` : `Show all ${rows.length}`;
    update();
  });
})();
