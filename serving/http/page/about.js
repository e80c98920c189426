/** Shows the model's card: the figures that count, and the rest on demand. */

import { byId, element, onTrack } from "./elements.js";
import { TEXT } from "./text.js";
import { percent, sentence } from "./words.js";

const WORDS = TEXT.about;
const FIRST = ["cancer_auc", "cancer_sensitivity", "cancer_specificity", "accuracy", "macro_f1"];
/** Figures that are no share, so they have no mark on a track from 0 to 1. */
const UNMARKED = ["calibration_error"];

export function drawAbout(model) {
  const [split] = Object.values(model.metrics);
  const parts = [];
  if (split) {
    parts.push(
      element("p", { className: "lead" }, WORDS.lead(split.split)),
      scroller(WORDS.best, table([head(sentence(WORDS.images(split.images)))], FIRST.map((key) => figureRow(key, [split])))),
      ...["all", "byClass"].map((part) => more(part, model)),
    );
  }
  if (model.caveats.length) parts.push(more("caveats", model));
  parts.push(...["checks", "lineage"].map((part) => more(part, model)));
  byId("about-body").replaceChildren(...parts);
}

/** Make a closed part. What it holds is drawn when it is opened first. */
function more(part, model) {
  const made = element("details", { className: "more", id: `about-${part}` }, element("summary", {}, WORDS[part]));
  made.addEventListener("toggle", async () => {
    if (made.childElementCount > 1) return;
    const drawn = await import("./later/about_details.js");
    if (made.childElementCount === 1) made.append(...drawn[part](model));
  });
  return made;
}

export function scroller(name, content) {
  const box = element("div", { className: "scroller", tabIndex: 0, ariaLabel: name }, content);
  box.setAttribute("role", "region");
  return box;
}

export const head = (...words) => element("th", { scope: "col" }, ...words);

export function table(heads, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, element("td"), ...heads)), element("tbody", {}, ...rows));
}

export function tableRow(title, cells, note = "") {
  const head = element("th", { scope: "row" }, title);
  if (note) head.append(element("small", {}, note));
  return element("tr", {}, head, ...cells);
}

export const figureRow = (key, splits) => tableRow(WORDS.figures[key], splits.map((metrics) => estimate(metrics[key], !UNMARKED.includes(key))));

/** Whether a figure could not be measured, for lack of images. The card then says 0, with an interval from 0 to 1. */
const unknown = ({ value, low, high }) => value === 0 && low === 0 && high === 1;

/** Draw a figure with its interval, or a dash if it was not measured. */
export function estimate(found, marked) {
  if (!found || unknown(found)) return element("td", {}, "–");
  const { value, low, high } = found;
  const range = `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)}`;
  const cell = element("td", {}, percent(value), element("small", {}, range));
  if (marked) {
    const marks = [onTrack("band", { left: low, width: high - low }), onTrack("point", { left: value })];
    cell.append(element("span", { className: "interval", ariaHidden: "true" }, ...marks));
  }
  return cell;
}
