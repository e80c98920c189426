/** Shows the current picture, with zoom (slider, keys, pinch, dragging), brightness and contrast. */

import { byId, element, pngUrl } from "./elements.js";
import { bytes, sentence } from "./words.js";

const screen = byId("screen");
const slice = byId("slice");
const picture = byId("picture");
const sliders = {};
for (const [id, min, max] of [["zoom", 100, 800], ["brightness", 20, 300], ["contrast", 20, 400]]) {
  sliders[id] = element("input", { type: "range", id, min, max, step: 5, value: 100 });
  const label = element("label", { htmlFor: id }, sentence(id));
  const value = element("span", { id: `${id}-value`, ariaHidden: "true" });
  byId("view-reset").before(element("div", { className: "slider" }, label, sliders[id], value));
}

/** Pixels that an arrow key moves the picture. */
const STEP = 40;

let shown = null;
let pan = [0, 0];
let held = null;

/** Show the item's file; if `standard`, or if the browser can't read it (DICOM), show what the model saw of it. */
export async function showPicture(item, standard = false) {
  const preview = item?.prediction?.preview;
  const fresh = shown?.item !== item;
  const same = !fresh && shown.standard === standard;
  if (same && (shown.preview === preview || (shown.drawn && !standard))) return shown.done;
  if (fresh) reset();
  shown = { item, preview, standard, drawn: false };
  return (shown.done = drawPicture(shown, fresh));
}

async function drawPicture(mine, fresh) {
  const { item, preview, standard } = mine;
  byId("preview-note").hidden = byId("no-preview").hidden = true;
  if (fresh) {
    slice.hidden = byId("view-controls").hidden = true;
    release();
    picture.removeAttribute("src");
  }
  if (!item) return;
  byId("file-name").textContent = item.name;
  byId("file-facts").textContent = bytes(item.file.size);
  picture.alt = `The picture ${item.name}`;
  if (!standard || !item.size) mine.drawn = await load(URL.createObjectURL(item.file));
  if (mine !== shown) return;
  if (mine.drawn) item.size = `${picture.naturalWidth} × ${picture.naturalHeight}`;
  const seen = Boolean(preview) && (standard || !mine.drawn) && (await load(pngUrl(preview)));
  if (mine !== shown) return;
  byId("preview-note").hidden = !seen;
  const readable = seen || mine.drawn;
  byId("no-preview").hidden = readable;
  slice.hidden = byId("view-controls").hidden = !readable;
  if (!readable) return;
  screen.style.setProperty("--ratio", picture.naturalWidth / picture.naturalHeight);
  if (item.size) byId("file-facts").textContent = `${item.size} · ${bytes(item.file.size)}`;
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

// ---- zoom, brightness, contrast ----

const zoom = () => Number(sliders.zoom.value) / 100;

function draw() {
  const room = (zoom() - 1) / 2;
  const most = [room * slice.offsetWidth, room * slice.offsetHeight];
  pan = pan.map((at, axis) => Math.min(most[axis], Math.max(-most[axis], at)));
  slice.style.transform = zoom() > 1 ? `translate(${pan[0]}px, ${pan[1]}px) scale(${zoom()})` : "";
  picture.style.filter = `brightness(${sliders.brightness.value}%) contrast(${sliders.contrast.value}%)`;
  screen.classList.toggle("zoomed", zoom() > 1);
  screen.tabIndex = zoom() > 1 ? 0 : -1;
  for (const [name, slider] of Object.entries(sliders)) {
    byId(`${name}-value`).textContent = slider.ariaValueText = `${slider.value}\u00a0%`;
  }
}

function zoomTo(times) {
  sliders.zoom.value = 100 * times;
  draw();
}

function reset() {
  for (const slider of Object.values(sliders)) slider.value = 100;
  pan = [0, 0];
  draw();
}

for (const slider of Object.values(sliders)) slider.addEventListener("input", draw);
byId("view-reset").addEventListener("click", reset);

// A wheel without ctrl scrolls the page. A pinch on a touchpad arrives as a wheel event with ctrl.
screen.addEventListener("wheel", (event) => {
  if (!event.ctrlKey || slice.hidden) return;
  event.preventDefault();
  zoomTo(zoom() * Math.exp(-event.deltaY / 200));
}, { passive: false });
slice.addEventListener("dblclick", () => zoomTo(zoom() > 1 ? 1 : 2.5));
slice.addEventListener("pointerdown", (event) => {
  if (zoom() <= 1 || event.button) return;
  held = [event.clientX - pan[0], event.clientY - pan[1]];
  slice.setPointerCapture(event.pointerId);
});
slice.addEventListener("pointermove", (event) => {
  if (!held) return;
  pan = [event.clientX - held[0], event.clientY - held[1]];
  draw();
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
