"use strict";
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  table.querySelectorAll("thead th").forEach((head, place) => {
    if (body.rows.length < 2) return;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      const value = (row) => row.cells[place].textContent.trim();
      const order = (a, b) => {
        const [x, y] = [parseFloat(value(a)), parseFloat(value(b))];
        return isNaN(x) || isNaN(y) ? value(a).localeCompare(value(b)) : x - y;
      };
      const rows = [...body.rows].sort((a, b) => (down ? order(b, a) : order(a, b)));
      table.querySelectorAll("thead th").forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      body.replaceChildren(...rows);
    });
  });
}
