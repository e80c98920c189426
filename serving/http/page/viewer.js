/** Shows the current picture, with zoom (slider, keys, pinch, dragging), and brightness and contrast or a CT window. */

import { byId, element, pngUrl } from "./elements.js";
import { TEXT } from "./text.js";
import { bytes } from "./words.js";

const screen = byId("screen");
const slice = byId("slice");
const picture = byId("picture");
const canvas = byId("hounsfield");

/** Level and width in Hounsfield units. The first is the window through which the model looks at every DICOM file. */
const WINDOWS = { model: [-350, 1500], lung: [-600, 1500], mediastinal: [40, 400], bone: [400, 1800], wide: [0, 2000] };
const SLIDERS = { zoom: [100, 800, 100], brightness: [20, 300, 100], contrast: [20, 400, 100], level: [-1000, 1000, -350], width: [50, 4000, 1500] };
const sliders = {};
for (const [id, [min, max, value]] of Object.entries(SLIDERS)) {
  sliders[id] = element("input", { type: "range", id, min, max, step: 5, value });
  const label = element("label", { htmlFor: id }, TEXT.sliders[id]);
  byId("sliders").append(element("div", { className: "slider" }, label, sliders[id], element("span", { id: `${id}-value`, ariaHidden: "true" })));
}
byId("windows").setAttribute("role", "radiogroup");
byId("windows").setAttribute("aria-label", TEXT.window);
for (const name of Object.keys(WINDOWS)) {
  const input = element("input", { type: "radio", name: "window", value: name });
  byId("windows").append(element("label", {}, input, element("span", {}, TEXT.windows[name])));
}

/** Pixels that an arrow key moves the picture. */
const STEP = 40;
/** Hounsfield units for each pixel of a drag. */
const PULL = 3;

let shown = null;
let pan = [0, 0];
let held = null;
let ct = null; // Hounsfield units on screen, or null for a picture

/**
 * Show the item's file; if `standard`, or if the browser can't read it, show what the model saw of it. Of DICOM files the
 * browser reads those whose pixels are not compressed.
 */
export async function showPicture(item, standard = false) {
  const preview = item?.prediction?.preview;
  const fresh = shown?.item !== item;
  const same = !fresh && shown.standard === standard;
  if (same && (shown.preview === preview || (shown.drawn && !standard))) return shown.done;
  if (fresh && !(item?.stack && item.stack === shown?.item?.stack)) reset();
  shown = { item, preview, standard, drawn: false };
  return (shown.done = drawPicture(shown, fresh));
}

async function drawPicture(mine, fresh) {
  const { item, preview, standard } = mine;
  byId("preview-note").hidden = byId("no-preview").hidden = true;
  if (fresh && !item?.stack) {
    slice.hidden = byId("view-controls").hidden = true;
    release();
    picture.removeAttribute("src");
  }
  if (!item) return;
  byId("file-name").textContent = item.name;
  byId("file-facts").textContent = bytes(item.file.size);
  picture.alt = canvas.ariaLabel = TEXT.of(item.name);
  const read = item.dicom && (!standard || !item.size) ? await readSlice(item.file) : null;
  if (mine !== shown) return;
  if (read) item.size = `${read.columns} × ${read.rows}`;
  if (!item.dicom && (!standard || !item.size)) mine.drawn = await load(URL.createObjectURL(item.file));
  if (mine !== shown) return;
  if (mine.drawn) item.size = `${picture.naturalWidth} × ${picture.naturalHeight}`;
  mine.drawn ||= Boolean(read);
  const seen = Boolean(preview) && (standard || !mine.drawn) && (await load(pngUrl(preview)));
  if (mine !== shown) return;
  ct = seen ? null : read;
  byId("preview-note").hidden = !seen;
  const readable = seen || mine.drawn;
  byId("no-preview").hidden = readable;
  slice.hidden = byId("view-controls").hidden = !readable;
  if (!readable) return;
  screen.style.setProperty("--ratio", ct ? ct.columns / ct.rows : picture.naturalWidth / picture.naturalHeight);
  if (item.size) byId("file-facts").textContent = `${item.size} · ${bytes(item.file.size)}`;
  canvas.hidden = byId("windows").hidden = byId("window-how").hidden = !ct;
  picture.hidden = Boolean(ct);
  for (const [name, slider] of Object.entries(sliders)) {
    const hidden = name !== "zoom" && ["level", "width"].includes(name) !== Boolean(ct);
    slider.parentElement.hidden = hidden;
  }
  draw();
}

async function readSlice(file) {
  const dicom = await import("./later/dicom.js");
  through = dicom.throughWindow;
  return dicom.readSlice(file).catch(() => null);
}

function release() {
  if (picture.src.startsWith("blob:")) URL.revokeObjectURL(picture.src);
}

/** Load the URL into the picture. Returns whether it is one that the browser can read. */
function load(url) {
  release();
  picture.src = url;
  return picture.decode().then(() => true, () => false);
}

// ---- zoom, brightness, contrast, window ----

let through = null; // draws Hounsfield units through a window, once it is loaded
let drawn = []; // what is on the canvas

const value = (name) => Number(sliders[name].value);
const zoom = () => value("zoom") / 100;

function draw() {
  const room = (zoom() - 1) / 2;
  const most = [room * slice.offsetWidth, room * slice.offsetHeight];
  pan = pan.map((at, axis) => Math.min(most[axis], Math.max(-most[axis], at)));
  slice.style.transform = zoom() > 1 ? `translate(${pan[0]}px, ${pan[1]}px) scale(${zoom()})` : "";
  picture.style.filter = `brightness(${value("brightness")}%) contrast(${value("contrast")}%)`;
  slice.classList.toggle("windowed", Boolean(ct));
  screen.classList.toggle("zoomed", zoom() > 1);
  screen.tabIndex = zoom() > 1 ? 0 : -1;
  for (const [name, slider] of Object.entries(sliders)) {
    const unit = name === "level" || name === "width" ? "HU" : "%";
    byId(`${name}-value`).textContent = slider.ariaValueText = `${slider.value}\u00a0${unit}`;
  }
  if (ct) drawWindow(value("level"), value("width"));
}

function drawWindow(level, width) {
  for (const input of byId("windows").querySelectorAll("input")) input.checked = String(WINDOWS[input.value]) === String([level, width]);
  if (String(drawn) === String([level, width]) && drawn.ct === ct) return;
  drawn = Object.assign([level, width], { ct });
  [canvas.width, canvas.height] = [ct.columns, ct.rows];
  canvas.getContext("2d").putImageData(through(ct, level, width), 0, 0);
}

function setWindow(level, width) {
  [sliders.level.value, sliders.width.value] = [level, width];
  draw();
}

function zoomTo(times) {
  sliders.zoom.value = 100 * times;
  draw();
}

function reset() {
  for (const [name, slider] of Object.entries(sliders)) [, , slider.value] = SLIDERS[name];
  pan = [0, 0];
  draw();
}

for (const slider of Object.values(sliders)) slider.addEventListener("input", draw);
byId("windows").addEventListener("change", ({ target }) => setWindow(...WINDOWS[target.value]));
byId("view-reset").addEventListener("click", reset);

// A wheel without ctrl scrolls the page. A pinch on a touchpad arrives as a wheel event with ctrl.
screen.addEventListener("wheel", (event) => {
  if (!event.ctrlKey || slice.hidden) return;
  event.preventDefault();
  zoomTo(zoom() * Math.exp(-event.deltaY / 200));
}, { passive: false });
slice.addEventListener("dblclick", () => zoomTo(zoom() > 1 ? 1 : 2.5));

// A drag moves an enlarged picture. Otherwise it changes the window, but not by touch, which scrolls the page.
slice.addEventListener("pointerdown", (event) => {
  const moves = zoom() > 1;
  if (event.button || (!moves && (!ct || event.pointerType === "touch"))) return;
  held = { moves, x: event.clientX, y: event.clientY, from: moves ? pan : [value("width"), value("level")] };
  slice.setPointerCapture(event.pointerId);
});
slice.addEventListener("pointermove", (event) => {
  if (!held) return;
  const [across, down] = [event.clientX - held.x, event.clientY - held.y];
  const [first, second] = held.from;
  if (held.moves) {
    pan = [first + across, second + down];
    draw();
  } else {
    setWindow(second + PULL * down, first + PULL * across);
  }
});
for (const end of ["pointerup", "pointercancel"]) slice.addEventListener(end, () => (held = null));
screen.addEventListener("keydown", (event) => {
  const move = { ArrowLeft: [STEP, 0], ArrowRight: [-STEP, 0], ArrowUp: [0, STEP], ArrowDown: [0, -STEP] }[event.key];
  if (event.target !== screen || zoom() <= 1 || !(move || "+-0".includes(event.key))) return;
  event.preventDefault();
  if (move) {
    pan = pan.map((at, axis) => at + move[axis]);
    draw();
  } else {
    zoomTo(event.key === "0" ? 1 : zoom() * (event.key === "+" ? 1.25 : 0.8));
  }
});
draw();
