/** Shows thumbnails of this visit's pictures, their progress, and buttons for all of them. */

import { byId, element, icon, pngUrl } from "./elements.js";
import { cancel, failed, items, open, pause, retry } from "./queue.js";
import { outcome } from "./words.js";

const list = byId("thumbs");
const SIZE = 96;

const buttons = new Map();
let choose = () => {};

export function onChoose(listener) {
  choose = listener;
}

/** Draw the thumbnail of `item` and the progress, or only the progress if `item` is null. */
export function drawThumbnails(item, selected, model) {
  if (item?.state === "gone") return;
  drawProgress();
  if (!item) return;
  drawThumb(item, model);
  mark(selected);
}

export function mark(selected) {
  for (const [item, { button }] of buttons) {
    const here = item === selected;
    button.tabIndex = here ? 0 : -1;
    if (here) button.setAttribute("aria-current", "true");
    else button.removeAttribute("aria-current");
  }
}

export function clearThumbnails() {
  for (const { image } of buttons.values()) URL.revokeObjectURL(image.src);
  buttons.clear();
  list.replaceChildren();
  drawProgress();
}

function drawThumb(item, model) {
  if (!buttons.has(item)) addThumb(item);
  const { button, words, mark: sign, image } = buttons.get(item);
  const { words: said, tone } = outcome(item, model);
  button.dataset.tone = tone;
  words.textContent = said;
  sign.firstElementChild.setAttribute("href", `#icon-${tone}`);
  const preview = item.prediction?.preview;
  if (preview && !image.src && item.thumbed) image.src = pngUrl(preview);
}

function addThumb(item) {
  const image = element("img", { alt: "", width: 72, height: 54 });
  const words = element("span", { className: "thumb-words" });
  const sign = icon("busy");
  const button = element("button", { type: "button", title: item.name }, image, element("span", { className: "unseen" }, `${item.name}: `), element("span", { className: "thumb-outcome" }, sign, words));
  button.addEventListener("click", () => choose(item));
  buttons.set(item, { button, words, mark: sign, image });
  list.append(element("li", {}, button));
  thumbnail(item, image);
}

let turn = Promise.resolve();

/** Draw the thumbnail. They are drawn one at a time, so that fifty large pictures are never decoded together. */
function thumbnail(item, image) {
  turn = turn.then(async () => {
    if (item.state === "gone") return;
    const blob = await small(item.file).catch(() => null);
    item.thumbed = true;
    if (blob && item.state !== "gone") image.src = URL.createObjectURL(blob);
    else if (item.prediction?.preview) image.src = pngUrl(item.prediction.preview);
  });
}

async function small(file) {
  if (file.size > 20e6) return null;
  const whole = await createImageBitmap(file, { resizeWidth: SIZE, resizeQuality: "medium" });
  const canvas = element("canvas", { width: whole.width, height: Math.min(whole.height, 4 * SIZE) });
  canvas.getContext("2d").drawImage(whole, 0, 0);
  whole.close();
  return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", 0.8));
}

function drawProgress() {
  const waiting = items.filter(open).length;
  const lost = items.filter(failed).length;
  const done = items.length - waiting;
  byId("batch").hidden = items.length < 2;
  const bar = byId("progress");
  bar.hidden = !waiting;
  [bar.max, bar.value] = [items.length, done];
  const again = pause();
  const said = [`${done} of ${items.length} pictures done`, lost && `${lost} failed`, waiting && again && `asking again in ${again} s`];
  byId("progress-words").textContent = said.filter(Boolean).join(", ");
  byId("retry-failed").hidden = !lost;
  byId("retry-failed").textContent = lost === 1 ? "Retry the one that failed" : `Retry all ${lost} that failed`;
  byId("cancel-all").hidden = waiting < 2;
}

byId("retry-failed").addEventListener("click", () => items.filter(failed).forEach(retry));
byId("cancel-all").addEventListener("click", () => items.filter(open).forEach(cancel));
list.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!step) return;
  const all = [...buttons.values()].map(({ button }) => button);
  const next = all[all.indexOf(document.activeElement) + step];
  if (!next) return;
  event.preventDefault();
  next.focus();
  next.click();
});
