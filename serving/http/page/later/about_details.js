/** Draws the closed parts of the model's card. Each function returns the elements of one of them. */

import { estimate, figureRow, head, scroller, table, tableRow } from "../about.js";
import { element, row } from "../elements.js";
import { TEXT } from "../text.js";
import { percent, plain, sentence, titleOf } from "../words.js";
import { confusion, reliability, riskCoverage } from "./charts.js";

const WORDS = TEXT.about;

/** Draw every figure on every split. */
export function all({ metrics }) {
  const splits = Object.values(metrics);
  const heads = Object.entries(metrics).map(([key, { images }]) => head(plain(key), element("small", {}, WORDS.images(images))));
  const rows = Object.keys(WORDS.figures).map((key) => figureRow(key, splits));
  const shares = Object.entries(WORDS.shares).map(([key, title]) => tableRow(title, splits.map((one) => element("td", {}, percent(one[key])))));
  const meanings = Object.entries(metrics).map(([key, { split }]) => row(plain(key), `${sentence(split)}.`));
  return [scroller(WORDS.all, table(heads, [...rows, ...shares])), element("dl", { className: "facts" }, ...meanings)];
}

/** Draw one split at a time: figures by class, and the card's curves. */
export function byClass(model) {
  const options = Object.keys(model.metrics).map((key) => element("option", { value: key }, plain(key)));
  const choice = element("select", { id: "split" }, ...options);
  const body = element("div");
  const draw = () => {
    const metrics = model.metrics[choice.value];
    body.replaceChildren(
      scroller(WORDS.byClass, classes(metrics, model)),
      element("div", { className: "charts" }, reliability(metrics), riskCoverage(metrics), confusion(metrics, model)),
    );
  };
  choice.addEventListener("change", draw);
  draw();
  return [element("p", { className: "note" }, element("label", { htmlFor: "split" }, `${WORDS.on} `), choice), body];
}

function classes(metrics, model) {
  const { classFigures } = WORDS;
  const rows = Object.entries(metrics.classes).map(([name, figures]) =>
    tableRow(titleOf(model, name), Object.keys(classFigures).map((key) => estimate(figures[key], true)), WORDS.images(figures.images)),
  );
  return table(Object.values(classFigures).map((title) => head(title)), rows);
}

/** Draw the answers to pictures that are no chest CT, checks of the answers, and baselines. */
export function checks({ others, checks: found, baselines }) {
  const keys = [...new Set(Object.values(baselines ?? {}).flatMap(Object.keys))];
  return [
    ...compare(WORDS.others, others, [WORDS.shares.rejected], (one) => [[element("td", {}, percent(one.rejected))], WORDS.images(one.images)]),
    ...compare(WORDS.changes, found, [WORDS.share], (one) => [[estimate(one, false)]]),
    ...compare(WORDS.simpler, baselines, keys.map((key) => WORDS.figures[key]), (one) => [keys.map((key) => estimate(one[key], true))]),
  ];
}

function compare(title, found, heads, draw) {
  const rows = Object.entries(found ?? {}).map(([name, one]) => tableRow(plain(name), ...draw(one)));
  return rows.length ? [element("h3", {}, title), scroller(title, table(heads.map((words) => head(words)), rows))] : [];
}

export const caveats = (model) => [element("ul", { className: "caveats" }, ...model.caveats.map((words) => element("li", {}, words)))];

export function lineage(model) {
  const { lineage: from, input } = model;
  const made = new Date(from.created);
  const day = Number.isNaN(made.valueOf()) ? from.created : made.toLocaleDateString(TEXT.locale, { dateStyle: "long" });
  const rows = [
    row(TEXT.model, model.model ?? model.name, true),
    row(WORDS.madeOn, day),
    row(WORDS.backbone, WORDS.starting(from.backbone, from.weights)),
    row(WORDS.trainedOn, WORDS.distinct(from.image_count, WORDS.sources[from.data_source] ?? from.data_source)),
    row(WORDS.sees, WORDS.pixels(input.width, input.height)),
    row(WORDS.calibration, WORDS.scaling(model.scaling.method)),
    row(WORDS.licence, model.licence),
    row(WORDS.run, from.run_id, true),
    row(WORDS.commit, from.git_commit, true),
    row(WORDS.data, from.data_digest, true),
    row(WORDS.sha, from.model_sha256, true),
  ];
  return [element("dl", { className: "facts" }, ...rows)];
}
