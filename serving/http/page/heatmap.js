/** Draws the heat map over what the model saw, for the chosen class and opacity. */

import { byId, element, pngUrl } from "./elements.js";
import { TEXT } from "./text.js";
import { percent, titleOf } from "./words.js";

const controls = byId("heat-controls");
const choices = byId("heat-classes");
const canvas = byId("heat");
const opacity = byId("opacity");
const opacityValue = byId("opacity-value");

const SIDE = 256;
/** Colours of the ramp: black, violet, red, orange, pale yellow. Lightness grows, so the ramp also works without colour. */
const RAMP = [[0, 0, 0], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
/** Least level (of 255) of a map's strongest point. Below it, stretching the map would only show its rounding. */
const FAINT = 3;

let drawing = 0;
/** What the user chose last: whether no map is shown. Null before the first choice. */
let off = null;

/**
 * Offer the heat maps of an answer with a label. `look(true)` shows what the model saw, on which they lie. Unless the user
 * has chosen, the map of the label is shown at first if `atOnce`.
 */
export function offerHeatmaps(prediction, model, look, atOnce) {
  const maps = (prediction?.label && prediction.heatmaps) || {};
  const names = Object.keys(maps);
  controls.hidden = names.length === 0;
  canvas.hidden = true;
  drawing += 1;
  if (!names.length) {
    look(false);
    return;
  }
  const first = (off ?? !atOnce) ? "" : prediction.label;
  choices.replaceChildren(...["", ...names].map((name) => choice(name, name === first, model)));
  choices.onchange = ({ target: { value } }) => {
    off = !value;
    show(maps[value], look);
  };
  show(maps[first], look);
}

function choice(name, checked, model) {
  const input = element("input", { type: "radio", name: "heat-class", value: name, checked });
  return element("label", {}, input, element("span", {}, name ? titleOf(model, name) : TEXT.off));
}

async function show(png, look) {
  const turn = (drawing += 1);
  canvas.hidden = true;
  byId("heat-strength").textContent = "";
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
  const most = paint(image);
  canvas.hidden = most < FAINT;
  byId("heat-strength").textContent = most < FAINT ? TEXT.heatNone : TEXT.heatStrength(percent(most / 255, 0));
}

/** Shares of the map's own scale: up to CLEAR it is transparent, and from SOLID on it has the opacity of the slider. */
const CLEAR = 0.1;
const SOLID = 0.6;

/**
 * Enlarge the grey map smoothly and colour it on its own scale. The maps of an answer come on one scale, on which those
 * of other classes are often too dark to see. Returns the level of the strongest point, up to 255.
 */
function paint(image) {
  canvas.width = canvas.height = SIDE;
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(image, 0, 0, SIDE, SIDE);
  const picture = context.getImageData(0, 0, SIDE, SIDE);
  const data = picture.data;
  let most = 1;
  for (let i = 0; i < data.length; i += 4) most = Math.max(most, data[i]);
  for (let i = 0; i < data.length; i += 4) {
    const level = data[i] / most;
    const place = level * (RAMP.length - 1);
    const lower = Math.min(Math.floor(place), RAMP.length - 2);
    for (let c = 0; c < 3; c += 1) {
      data[i + c] = RAMP[lower][c] + (RAMP[lower + 1][c] - RAMP[lower][c]) * (place - lower);
    }
    data[i + 3] = 255 * Math.min(1, Math.max(0, (level - CLEAR) / (SOLID - CLEAR)));
  }
  context.putImageData(picture, 0, 0);
  return most;
}

function fade() {
  canvas.style.opacity = String(opacity.value / 100);
  opacityValue.textContent = opacity.ariaValueText = percent(opacity.value / 100, 0);
}

opacity.addEventListener("input", fade);
fade();
