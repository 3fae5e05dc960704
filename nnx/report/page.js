"use strict";

/* A number of the confusion matrix shows what is behind it. */
{
  const buttons = [...document.querySelectorAll("[data-cell]")];
  const show = (chosen) => {
    for (const button of buttons) {
      const open = button === chosen;
      button.setAttribute("aria-expanded", String(open));
      document.getElementById(button.dataset.cell).hidden = !open;
    }
  };
  for (const button of buttons) {
    button.setAttribute("aria-controls", button.dataset.cell);
    button.addEventListener("click", () => show(button.getAttribute("aria-expanded") === "true" ? null : button));
  }
  show(document.querySelector("[data-cell][data-first]"));
}

/* A head of a table sorts it, first by what is worst. */
for (const table of document.querySelectorAll(".sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0], order = [...body.rows];
  heads.forEach((head, column) => head.querySelector("button")?.addEventListener("click", () => {
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of heads) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const value = (row) => column ? parseFloat(row.cells[column].textContent.replace(/,/g, "")) : order.indexOf(row);
    body.append(...[...body.rows].sort((a, b) => (value(a) - value(b) || order.indexOf(a) - order.indexOf(b)) * (up ? 1 : -1)));
  }));
}
