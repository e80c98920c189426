/** Shows thumbnails of this visit's pictures, their progress, and buttons for all of them. */

import { byId, element, icon, pngUrl } from "./elements.js";
import { cancel, items, open, pause, retriable, retry } from "./queue.js";
import { TEXT } from "./text.js";
import { countsOf, outcome } from "./words.js";

const list = byId("thumbs");
const SIZE = 96;

/** By item, or by stack, of which one thumbnail shows the slice that was chosen last. */
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
  const chosen = selected && (selected.stack ?? selected);
  if (selected?.stack) selected.stack.last = selected;
  for (const [thing, { button }] of buttons) {
    const here = thing === chosen;
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
  const { stack } = item;
  const thing = stack ?? item;
  if (!buttons.has(thing)) addThumb(item, thing);
  const { button, words, mark: sign, image } = buttons.get(thing);
  const { words: said, tone } = outcome(item, model);
  button.dataset.tone = stack ? "busy" : tone;
  words.textContent = stack ? countsOf(stack.items) : said;
  sign.toggleAttribute("hidden", Boolean(stack));
  sign.firstElementChild.setAttribute("href", `#icon-${tone}`);
  const preview = item.prediction?.preview;
  if (preview && !image.src && item.thumbed) image.src = pngUrl(preview);
}

function addThumb(item, thing) {
  const image = element("img", { alt: "", width: 72, height: 54 });
  const words = element("span", { className: "thumb-words" });
  const sign = icon("busy");
  const name = item.stack ? TEXT.stackOf(item.stack.name, item.stack.items.length) : item.name;
  const button = element("button", { type: "button", title: name }, image, element("span", { className: "thumb-name" }, name), element("span", { className: "thumb-outcome" }, sign, words));
  button.addEventListener("click", () => choose(item.stack?.last ?? item));
  buttons.set(thing, { button, words, mark: sign, image });
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
  const lost = items.filter((item) => item.state === "error").length;
  const again = items.filter(retriable).length;
  const done = items.length - waiting;
  byId("batch").hidden = items.length < 2;
  const bar = byId("progress");
  bar.hidden = !waiting;
  [bar.max, bar.value] = [items.length, done];
  byId("progress-words").textContent = TEXT.progress(done, items.length, lost, waiting && pause());
  byId("retry-failed").hidden = !again;
  byId("retry-failed").textContent = TEXT.retryFailed(again);
  byId("cancel-all").hidden = waiting < 2;
}

byId("retry-failed").addEventListener("click", () => items.filter(retriable).forEach(retry));
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
