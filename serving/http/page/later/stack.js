/** Scrolls through a stack of slices: a slider, a strip with each slice's answer, and the wheel over the picture. */

import { byId, element } from "../elements.js";
import { TEXT } from "../text.js";
import { countsOf, kindOf, outcome } from "../words.js";

const controls = byId("stack-controls");
const strip = byId("stack-strip");
const slider = byId("stack-slider");

/** Height of each answer in the strip, by which it can be told without colour. What has no answer is lowest. */
const TALL = { accept: "100%", refer: "80%", unfamiliar: "60%", reject: "40%", unusable: "40%" };
const LOWEST = "20%";

let shown = null;
let choose = () => {};

export function onScroll(listener) {
  choose = listener;
}

/** Show where `item` is in its stack, or hide the controls if it is in none. */
export function drawStack(item, model) {
  const stack = item?.stack;
  controls.hidden = !stack;
  if (!stack) {
    shown = null;
    return;
  }
  const { items } = stack;
  if (shown?.stack !== stack) strip.replaceChildren(...items.map(() => element("i")));
  shown = { stack, item };
  const place = items.indexOf(item);
  items.forEach((one, i) => {
    const mark = strip.children[i];
    mark.dataset.tone = outcome(one, model).tone;
    mark.style.setProperty("--tall", one.prediction ? TALL[kindOf(one.prediction)] : LOWEST);
    mark.classList.toggle("here", i === place);
  });
  slider.max = items.length;
  slider.value = place + 1;
  slider.ariaValueText = byId("stack-place").textContent = TEXT.sliceOf(place + 1, items.length);
  byId("stack-counts").textContent = countsOf(items);
}

function go(place) {
  const item = shown?.stack.items[place];
  if (item && item !== shown.item) choose(item);
}

slider.addEventListener("input", () => go(slider.value - 1));
strip.addEventListener("click", ({ target }) => go([...strip.children].indexOf(target)));
byId("screen").addEventListener("wheel", (event) => {
  if (!shown || event.ctrlKey) return; // with ctrl, it is a pinch
  event.preventDefault();
  go(shown.stack.items.indexOf(shown.item) + Math.sign(event.deltaY));
}, { passive: false });
