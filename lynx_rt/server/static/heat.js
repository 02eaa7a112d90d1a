// The map of layers and experts, and its table.

import { $, clamp, colour, make, number, percent, surface } from "./dom.js";
import { get } from "./server.js";

let counted = null; // the last answer of /v1/lynx/experts that has counts
let shape = null; // of the map as drawn: {left, w, h, rows, columns}
let spared = false; // whether the map shows what the policy spared
let cell = { row: 0, column: 0 }; // that was looked at last

export async function showExperts() {
  try {
    const found = await get("v1/lynx/experts");
    if (!found.read.length || found.number === counted?.number) return; // no window yet, or a model without experts
    counted = found;
    const rows = number(found.rows / found.steps);
    $("heat-window").textContent = `over ${found.steps} decode steps, ${rows} rows each, in ${number(found.seconds)} s`;
    drawHeat();
    if ($("heat-details").open) fillTable();
  } catch (error) {
    $("heat-window").textContent = `not shown: ${error.message}`;
  }
}

// Returns the share of decode steps that a cell stands for.
function share(row, column) {
  const { read, wanted, steps } = counted;
  return (spared ? Math.max(wanted[row][column] - read[row][column], 0) : read[row][column]) / steps;
}

export function drawHeat() {
  if (!counted) return;
  const rows = counted.read.length, columns = counted.read[0].length;
  const { context: c, width, height } = surface($("heat"), 18 + rows * clamp(Math.floor(480 / rows), 5, 22));
  const left = 54, w = (width - left) / columns, h = (height - 18) / rows, gap = w > 6 && h > 6 ? 1 : 0;
  const [from, to] = ["heat-0", "heat-1"].map((name) => colour(name).match(/[\da-f]{2}/gi).map((part) => parseInt(part, 16)));
  for (let r = 0; r < rows; ++r) {
    c.fillStyle = colour("muted");
    if (r % Math.ceil(14 / h) === 0) c.fillText(`layer ${counted.layers[r]}`, 0, r * h + h / 2 + 4);
    for (let e = 0; e < columns; ++e) {
      const part = share(r, e);
      c.fillStyle = `rgb(${from.map((value, i) => Math.round(value + part * (to[i] - value)))})`;
      c.fillRect(left + e * w, r * h, w - gap, h - gap);
    }
  }
  c.fillStyle = colour("muted");
  c.fillText("expert", 0, height - 4);
  for (let e = 0; e < columns; e += Math.ceil(columns / 8)) c.fillText(e, left + e * w, height - 4);
  if (document.activeElement === $("heat")) {
    c.strokeStyle = colour("text");
    c.lineWidth = 2;
    c.strokeRect(left + cell.column * w, cell.row * h, w - gap, h - gap);
  }
  shape = { left, w, h, rows, columns };
}

function tellCell(row, column) {
  const { layers, read, wanted, steps } = counted;
  cell = { row, column };
  const [own, after] = [wanted, read].map((counts) => percent(counts[row][column] / steps));
  const place = `Layer ${layers[row]}, expert ${column}`;
  $("cell").textContent = `${place}: read in ${after} of decode steps; the model’s own routing wanted it in ${own}`;
}

function fillTable() {
  if (!counted) return;
  const { layers, read } = counted;
  const header = (textContent, scope) => make("th", { textContent, scope });
  const head = make("tr", {}, header("Expert", "col"), ...read[0].map((_, e) => header(e, "col")));
  const cells = (r) => read[r].map((_, e) => make("td", { textContent: Math.round(100 * share(r, e)) }));
  const rows = layers.map((layer, r) => make("tr", {}, header(`Layer ${layer}`, "row"), ...cells(r)));
  const what = spared ? "own routing wanted and the policy spared" : "read";
  const caption = make("caption", { textContent: `Share of decode steps that ${what} each expert, in percent` });
  $("heat-table").replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
}

function look(row, column) {
  if (!counted) return;
  tellCell(clamp(row, 0, shape.rows - 1), clamp(column, 0, shape.columns - 1));
  drawHeat();
}

export function startHeat() {
  const map = $("heat");
  map.addEventListener("pointermove", (event) => {
    if (shape && event.offsetX >= shape.left) look(Math.floor(event.offsetY / shape.h), Math.floor((event.offsetX - shape.left) / shape.w));
  });
  map.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    look(cell.row + step[0], cell.column + step[1]);
  });
  for (const type of ["focus", "blur"]) map.addEventListener(type, drawHeat);
  for (const radio of document.querySelectorAll('input[name="heat"]'))
    radio.addEventListener("change", () => {
      spared = radio.value === "spared";
      drawHeat();
      fillTable();
    });
  $("heat-details").addEventListener("toggle", fillTable);
}
