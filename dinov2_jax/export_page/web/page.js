// The page: two images, the chosen patch, and what is shown of them.

import { draw, drawBar, heat } from "./drawing.js";
import { cosines, jointColors, largest, patchAt, percentile } from "./features.js";
import * as model from "./model.js";
import { centralSquare, decode, normalize } from "./pixels.js";

const NAMES = ["first", "second"];
const OWN = "own"; // in place of an example's name
const find = (selector, inside = document) => inside.querySelector(selector);

/** What is shown; images have {pixels, patches} when they are ready. */
export const state = {
  description: null, // page.json
  panes: NAMES.map((name) => ({ name, title: "", image: null, patches: null, turn: 0 })),
  chosen: null, // {pane: 0 or 1, row, column}
  show: "similarity",
  maps: null, // cosines of both images with the chosen patch
};
let colors = null; // principal components, computed when they are first shown

find("#serve").remove();
start().catch((error) => report(`${error.message}`, true));

async function start() {
  const response = await fetch(new URL("page.json", import.meta.url));
  if (!response.ok) throw new Error(`page.json: HTTP ${response.status}`);
  const description = (state.description = await response.json());
  const { model: name, patch_size: patch, size, model_bytes: bytes } = description;
  find("#about").textContent =
    `Model: ${name}, patches of ${patch} px, images of ${size} px.`;
  find("#credits").textContent = description.photographs
    .map(({ name, credit }) => `${name}: ${credit}`)
    .join("; ");
  drawBar(find("#bar"));
  state.panes.forEach(makePane);
  makeViews();
  const wanted = readAddress();
  const ready = model.load((loaded) =>
    report(`Loading the model: ${megabytes(loaded)} of ${megabytes(bytes)} MB`),
  );
  window.addEventListener("hashchange", () => useAddress(readAddress()));
  try {
    await ready;
  } catch (error) {
    throw new Error(`The model cannot be loaded: ${error.message}`);
  }
  await useAddress(wanted, { isStart: true });
}

function makePane(pane, index) {
  const section = find("#pane").content.cloneNode(true).firstElementChild;
  find("h2", section).textContent = index ? "Second image" : "First image";
  const select = find("select", section);
  for (const { name } of state.description.photographs) select.add(new Option(name));
  select.add(new Option("your own", OWN));
  select.options[select.length - 1].disabled = true;
  select.addEventListener("change", () => chooseExample(index, select.value));
  const input = find("input", section);
  input.addEventListener("change", () => input.files[0] && chooseFile(index, input.files[0]));
  const canvas = find("canvas", section);
  canvas.addEventListener("click", (event) => {
    const { patches } = pane;
    if (!patches) return;
    const box = canvas.getBoundingClientRect();
    const along = (at, start, length, count) =>
      Math.min(Math.max(Math.floor(((at - start) / length) * count), 0), count - 1);
    choosePatch(
      index,
      along(event.clientY, box.top, box.height, patches.rows),
      along(event.clientX, box.left, box.width, patches.columns),
    );
  });
  canvas.addEventListener("keydown", (event) => moveByKey(index, event));
  section.addEventListener("dragover", (event) => {
    event.preventDefault();
    section.classList.add("over");
  });
  section.addEventListener("dragleave", () => section.classList.remove("over"));
  section.addEventListener("drop", (event) => {
    event.preventDefault();
    section.classList.remove("over");
    if (event.dataTransfer.files[0]) chooseFile(index, event.dataTransfer.files[0]);
  });
  Object.assign(pane, { canvas, select, input });
  find("#panes").append(section);
}

function makeViews() {
  for (const radio of document.getElementsByName("show")) {
    radio.addEventListener("change", () => {
      state.show = radio.value;
      redraw();
      writeAddress();
    });
  }
}

function moveByKey(index, event) {
  const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
  const step = steps[event.key];
  const { patches } = state.panes[index];
  if (!step || !patches) return;
  event.preventDefault();
  let { pane, row, column } = state.chosen ?? {};
  if (pane !== index) {
    [row, column] = [patches.rows >> 1, patches.columns >> 1];
  } else {
    row = Math.min(Math.max(row + step[0], 0), patches.rows - 1);
    column = Math.min(Math.max(column + step[1], 0), patches.columns - 1);
  }
  choosePatch(index, row, column);
}

async function chooseExample(index, name) {
  const { file } = state.description.photographs.find((p) => p.name === name);
  state.panes[index].input.value = "";
  await chooseImage(index, name, name, async () => {
    const response = await fetch(new URL(file, import.meta.url));
    if (!response.ok) throw new Error(`${file}: HTTP ${response.status}`);
    return response.blob();
  });
}

async function chooseFile(index, file) {
  await chooseImage(index, file.name, OWN, () => file);
}

/** Reads an image, shows it and computes its features.
 *
 * @param index Which pane gets it.
 * @param title Its name.
 * @param option Its option in the pane's list of examples.
 * @param read Function that returns its file, or a promise of it.
 */
async function chooseImage(index, title, option, read) {
  const pane = state.panes[index];
  const turn = ++pane.turn; // a later choice makes this one out of date
  const { size, mean, std } = state.description;
  let image;
  try {
    image = centralSquare(await decode(await read()), size);
  } catch (error) {
    if (turn !== pane.turn) return;
    if (pane.image) pane.select.value = pane.option;
    else pane.turn = 0; // so that it gets its example when the model is loaded
    report(
      `${title} cannot be read (${error.message}): choose a JPEG, PNG or WebP file`,
      true,
    );
    return;
  }
  if (turn !== pane.turn) return;
  Object.assign(pane, { title, option, image, patches: null });
  pane.select.value = option;
  if (state.chosen?.pane === index) state.chosen = null;
  changed();
  report(`Computing the features of ${title} ...`);
  try {
    const { patches, seconds } = await model.run(normalize(image, mean, std), size);
    if (image !== pane.image) return;
    pane.patches = patches;
    const isLast = turn === pane.turn; // else the status is about a later choice
    if (isLast) report(`Features of ${title} took ${seconds.toFixed(2)} s. Click a patch.`);
  } catch (error) {
    report(`The model failed on ${title}: ${error.message}`, true);
  }
  changed();
}

function choosePatch(pane, row, column) {
  state.chosen = { pane, row, column };
  if (state.show !== "similarity") {
    state.show = "similarity";
    find("#views [value=similarity]").checked = true;
  }
  changed();
}

/** Recomputes what depends on images and patch. */
function changed() {
  colors = null;
  state.maps = null;
  const { chosen, panes } = state;
  if (chosen && panes[chosen.pane].patches) {
    const query = patchAt(panes[chosen.pane].patches, chosen.row, chosen.column);
    state.maps = panes.map(({ patches }) => patches && cosines(patches, query));
  }
  redraw();
  writeAddress();
}

function redraw() {
  const { maps, panes, show, chosen } = state;
  const low = maps && percentile(maps.flatMap((map) => [...(map ?? [])]), 2);
  const complete = panes.every(({ patches }) => patches);
  if (show === "pca" && complete) colors ??= jointColors(panes.map((p) => p.patches));
  panes.forEach((pane, index) => {
    if (!pane.image) return;
    const { patches, image } = pane;
    const grid = patches ?? { rows: 1, columns: 1 };
    const shown = {};
    if (show === "pca" && colors) {
      shown.colors = colors[index];
    } else if (show === "similarity" && maps?.[index]) {
      const own = chosen.pane === index;
      const best = own ? chosen.row * grid.columns + chosen.column : largest(maps[index]);
      shown.colors = heat(maps[index], low, 1);
      shown.faded = true;
      shown.frame = { index: best, dashed: !own };
    }
    draw(pane.canvas, image, grid, shown);
    pane.canvas.setAttribute(
      "aria-label",
      `${index ? "Second" : "First"} image, ${pane.title}, ${grid.rows} by ` +
        `${grid.columns} patches. Arrow keys choose a patch.`,
    );
  });
  describe(low);
}

/** Writes the legend and the result in words. */
function describe(low) {
  const { maps, panes, show, chosen } = state;
  const isMap = show === "similarity" && maps;
  find("#scale").hidden = !isMap;
  find("#low").textContent = isMap ? low.toFixed(2) : "";
  find("#high").textContent = isMap ? "1.00" : "";
  find("#legend-text").textContent = {
    similarity: isMap ? "cosine similarity to the chosen patch" : "Click a patch.",
    pca: "Red, green, blue: principal components 1, 2, 3 of both images together.",
    photographs: "The images as the model gets them.",
  }[show];
  let text = "";
  if (isMap) {
    text = `Patch in row ${chosen.row + 1}, column ${chosen.column + 1} of ` +
      `${panes[chosen.pane].title}.`;
    const other = 1 - chosen.pane;
    if (maps[other]) {
      const best = largest(maps[other]);
      const { columns } = panes[other].patches;
      text +=
        ` The most similar patch of ${panes[other].title}: row ` +
        `${Math.floor(best / columns) + 1}, column ${(best % columns) + 1}, cosine ` +
        `${maps[other][best].toFixed(3)}.`;
    }
  }
  find("#result").textContent = text;
}

/** Reads #first=chelsea&second=coffee&on=first&patch=3,4&show=pca; counts from 1. */
function readAddress() {
  const fields = new URLSearchParams(location.hash.slice(1));
  const known = state.description.photographs.map(({ name }) => name);
  const examples = NAMES.map((name, i) =>
    known.includes(fields.get(name)) ? fields.get(name) : known[i],
  );
  const numbers = (fields.get("patch") ?? "").split(",").map((n) => parseInt(n, 10) - 1);
  const chosen = { pane: fields.get("on") === "second" ? 1 : 0, row: numbers[0], column: numbers[1] };
  return { examples, chosen, show: fields.get("show") };
}

async function useAddress({ examples, chosen, show }, { isStart = false } = {}) {
  const radio = [...document.getElementsByName("show")].find((r) => r.value === show);
  if (radio) {
    radio.checked = true;
    state.show = show;
  }
  for (const [index, name] of examples.entries()) {
    const { title, turn } = state.panes[index];
    if (title === name || (isStart && turn)) continue; // chosen while the model loaded
    await chooseExample(index, name);
  }
  const { patches } = state.panes[chosen.pane];
  const inside = patches && chosen.row >= 0 && chosen.row < patches.rows &&
    chosen.column >= 0 && chosen.column < patches.columns;
  if (inside) state.chosen = chosen;
  changed();
}

function writeAddress() {
  const { panes, chosen, show } = state;
  if (!panes.every(({ title }) => title)) return;
  const known = state.description.photographs.map(({ name }) => name);
  const fields = new URLSearchParams();
  for (const { name, title } of panes) if (known.includes(title)) fields.set(name, title);
  if (chosen) {
    fields.set("on", NAMES[chosen.pane]);
    fields.set("patch", `${chosen.row + 1},${chosen.column + 1}`);
  }
  fields.set("show", show);
  history.replaceState(null, "", `#${fields}`.replaceAll("%2C", ","));
}

function megabytes(bytes) {
  return (bytes / 1e6).toFixed(0);
}

function report(text, isProblem = false) {
  find("#status").textContent = text;
  find("#status").classList.toggle("problem", isProblem);
}
