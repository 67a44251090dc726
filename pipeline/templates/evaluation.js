"use strict";
(() => {
  const table = document.getElementById("classes");
  if (!table) return;
  const body = table.tBodies[0];
  const headers = Array.from(table.tHead.rows[0].cells);

  const value = (row, column) => row.cells[column].dataset.value;
  const byName = (a, b) => a.localeCompare(b, undefined, { numeric: true });
  const sort = (column) => {
    const header = headers[column];
    const first = column === 0 ? "ascending" : "descending";
    const second = column === 0 ? "descending" : "ascending";
    const order = header.ariaSort === first ? second : first;
    const sign = order === "ascending" ? 1 : -1;
    // Rows without a figure stay at the end in either order.
    const compare = (left, right) => {
      const [a, b] = [value(left, column), value(right, column)];
      if (column === 0) return sign * byName(a, b);
      if (a === "" || b === "") return (a === "") - (b === "");
      return sign * (Number(a) - Number(b));
    };
    for (const other of headers) other.ariaSort = null;
    header.ariaSort = order;
    body.append(...Array.from(body.rows).sort(compare));
  };

  headers.forEach((header, column) => {
    const button = header.querySelector("button");
    button.addEventListener("click", () => sort(column));
    button.disabled = false;
  });
})();
