// Give long tables a filter: rows that contain every word typed stay.
for (const table of document.querySelectorAll(".md-typeset table:not([class])")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 40) continue;
  const input = document.createElement("input");
  input.type = "search";
  input.className = "table-filter";
  input.placeholder = "Filter rows, for example: convnext";
  input.setAttribute("aria-label", "Filter the rows of the table");
  const count = document.createElement("span");
  count.className = "table-filter-count";
  const show = () => {
    const words = input.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = `${shown} of ${rows.length}`;
  };
  input.addEventListener("input", show);
  const box = document.createElement("div");
  box.className = "table-long";
  table.before(input, count, box);
  box.append(table);
  show();
}
