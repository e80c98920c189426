/** Draws the heat map over what the model saw, for the chosen class and opacity. */

import { byId, element, pngUrl } from "./elements.js";
import { percent, titleOf } from "./words.js";

const controls = byId("heat-controls");
const choices = byId("heat-classes");
const canvas = byId("heat");
const opacity = byId("opacity");
const opacityValue = byId("opacity-value");

const SIDE = 256;
/** Colours of the ramp: black, violet, red, orange, pale yellow. Lightness grows, so the ramp also works without colour. */
const RAMP = [[0, 0, 0], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];

let drawing = 0;

/** Offer the heat maps of an answer with a label. `look(true)` shows what the model saw, on which they lie. */
export function offerHeatmaps(prediction, model, look) {
  const maps = (prediction?.label && prediction.heatmaps) || {};
  const names = Object.keys(maps);
  controls.hidden = names.length === 0;
  canvas.hidden = true;
  drawing += 1;
  if (!names.length) {
    look(false);
    return;
  }
  choices.replaceChildren(...["", ...names].map((name) => choice(name, name === prediction.label, model)));
  choices.onchange = (event) => show(maps[event.target.value], look);
  show(maps[prediction.label], look);
}

function choice(name, checked, model) {
  const input = element("input", { type: "radio", name: "heat-class", value: name, checked });
  return element("label", {}, input, element("span", {}, name ? titleOf(model, name) : "Off"));
}

async function show(png, look) {
  const turn = (drawing += 1);
  canvas.hidden = true;
  const looking = look(Boolean(png));
  if (!png) return;
  const image = new Image();
  image.src = pngUrl(png);
  try {
    await Promise.all([image.decode(), looking]);
  } catch {
    return;
  }
  if (turn !== drawing) return;
  paint(image);
  canvas.hidden = false;
}

/** Levels up to CLEAR are transparent. Levels from SOLID on have the full opacity of the slider. */
const CLEAR = 0.1;
const SOLID = 0.6;

/** Enlarge the grey map smoothly and colour it. */
function paint(image) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, SIDE, SIDE);
  const picture = context.getImageData(0, 0, SIDE, SIDE);
  const data = picture.data;
  for (let i = 0; i < data.length; i += 4) {
    const level = data[i] / 255;
    const place = level * (RAMP.length - 1);
    const lower = Math.min(Math.floor(place), RAMP.length - 2);
    for (let c = 0; c < 3; c += 1) {
      data[i + c] = RAMP[lower][c] + (RAMP[lower + 1][c] - RAMP[lower][c]) * (place - lower);
    }
    data[i + 3] = 255 * Math.min(1, Math.max(0, (level - CLEAR) / (SOLID - CLEAR)));
  }
  context.putImageData(picture, 0, 0);
}

function fade() {
  canvas.style.opacity = String(opacity.value / 100);
  opacityValue.textContent = opacity.ariaValueText = percent(opacity.value / 100, 0);
}

opacity.addEventListener("input", fade);
fade();
