"use strict";

// Figures name their colours; the style sheet defines them for light and dark pages.
const source = document.getElementById("figures").textContent;
const chosen = {};

function figures() {
  const style = getComputedStyle(document.documentElement);
  return JSON.parse(source, (key, value) =>
    typeof value === "string" && value.startsWith("--")
      ? style.getPropertyValue(value).trim() || value : value);
}

// Updates the figure with a choice, one level deep.
function over(base, change) {
  const result = {...base};
  for (const [key, value] of Object.entries(change)) {
    const isPlain = value !== null && typeof value === "object" && !Array.isArray(value);
    result[key] = isPlain ? {...base[key], ...value} : value;
  }
  return result;
}

function draw(figure) {
  const choice = figure.choices[chosen[figure.id] || 0];
  const data = choice
    ? choice.data.map((trace, i) => ({...figure.data[i], ...trace})) : figure.data;
  const layout = choice ? over(figure.layout, choice.layout) : figure.layout;
  // plotly.js writes into its arguments.
  Plotly.react(figure.id, structuredClone(data), structuredClone(layout),
    {responsive: true, displayModeBar: false});
  const buttons = document.getElementById(figure.id).parentElement.querySelectorAll("button");
  buttons.forEach((button, i) => {
    button.setAttribute("aria-pressed", i === (chosen[figure.id] || 0));
    button.onclick = () => { chosen[figure.id] = i; draw(figure); };
  });
}

function paint() { figures().forEach(draw); }

paint();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", paint);

// A click on a heading sorts by its column, numbers before texts; the next click reverses it.
for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.querySelectorAll("th")];
  const body = table.tBodies[0];
  const valueOf = (row, i) => {
    const cell = row.cells[i];
    return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value);
  };
  const compare = (one, other) => {
    if (typeof one !== typeof other) return typeof one === "number" ? -1 : 1;
    return one < other ? 1 : one > other ? -1 : 0;
  };
  heads.forEach((head, i) => {
    head.onclick = () => {
      const isDown = head.getAttribute("aria-sort") !== "descending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", isDown ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const by = compare(valueOf(a, i), valueOf(b, i));
        const isMixed = typeof valueOf(a, i) !== typeof valueOf(b, i);
        return isDown || isMixed ? by : -by;
      });
      body.append(...rows);
    };
  });
}
