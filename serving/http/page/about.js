/** Shows the model's card: figures with their intervals, caveats about the data, and lineage. */

import { confusion, reliability, riskCoverage } from "./charts.js";
import { byId, element, onTrack, row } from "./elements.js";
import { percent, plain, sentence, titleOf } from "./words.js";

const FIGURES = [
  ["accuracy", "Accuracy", true],
  ["macro_f1", "Macro F1", true],
  ["cancer_auc", "ROC AUC, any cancer or normal", true],
  ["roc_auc", "ROC AUC, one class against the rest", true],
  ["cancer_sensitivity", "Cancers found", true],
  ["cancer_specificity", "Normal recognised", true],
  ["calibration_error", "Calibration error", false],
];
const SHARES = [
  ["referred", "Referred to a person"],
  ["unfamiliar", "of these unfamiliar"],
  ["rejected", "Rejected"],
];

export function drawAbout(model) {
  const splits = Object.entries(model.metrics);
  const parts = [];
  if (splits.length) {
    parts.push(
      element("p", { className: "lead" }, "How good it was on images kept from its training, each figure with its 95\u00a0% interval."),
      scroller("How good it is", figures(splits)),
      element("dl", { className: "facts" }, ...splits.map(([key, metrics]) => row(plain(key), `${sentence(metrics.split)}.`))),
      ...details(splits, model),
    );
  }
  parts.push(...comparisons(model));
  if (model.caveats.length) {
    const caveats = model.caveats.map((words) => element("li", {}, words));
    parts.push(element("h3", {}, "What to know before believing the figures"), element("ul", { className: "caveats" }, ...caveats));
  }
  parts.push(element("h3", {}, "Where it comes from"), element("dl", { className: "facts" }, ...lineage(model)));
  byId("about-body").replaceChildren(...parts);
}

/** Draw one split at a time: figures by class, and the card's curves. */
function details(splits, model) {
  const options = splits.map(([key]) => element("option", { value: key }, plain(key)));
  const choice = element("select", { id: "split" }, ...options);
  const body = element("div");
  const draw = () => {
    const metrics = model.metrics[choice.value];
    body.replaceChildren(
      scroller("Class by class", classes(metrics, model)),
      element("div", { className: "charts" }, reliability(metrics), riskCoverage(metrics), confusion(metrics, model)),
    );
  };
  choice.addEventListener("change", draw);
  draw();
  return [element("h3", {}, "Class by class"), element("p", { className: "note" }, element("label", { htmlFor: "split" }, "On "), choice), body];
}

/** Draw baselines, checks of the answers, and the answers to pictures that are no chest CT. */
function comparisons(model) {
  const parts = [];
  const compare = (title, found, heads, draw) => {
    const rows = Object.entries(found ?? {}).map(([name, one]) => tableRow(plain(name), ...draw(one)));
    if (rows.length) parts.push(...titled(title, heads.map((key) => head(plain(key))), rows));
  };
  const keys = [...new Set(Object.values(model.baselines ?? {}).flatMap(Object.keys))];
  compare("Simpler ways to answer", model.baselines, keys, (one) => [keys.map((key) => (one[key] ? estimate(one[key], true) : element("td", {}, "–")))]);
  compare("Small changes and heat maps", model.checks, ["share"], (one) => [[estimate(one, false)]]);
  compare("Pictures that are no chest CT, or shown wrongly", model.others, ["rejected"], (one) => [[element("td", {}, percent(one.rejected))], `${one.images} images`]);
  return parts;
}

function scroller(name, table) {
  const box = element("div", { className: "scroller", tabIndex: 0, ariaLabel: name }, table);
  box.setAttribute("role", "region");
  return box;
}

function figures(splits) {
  const heads = splits.map(([key, metrics]) => head(plain(key), element("small", {}, `${metrics.images} images`)));
  const rows = FIGURES.map(([key, title, drawn]) =>
    tableRow(title, splits.map(([, metrics]) => estimate(metrics[key], drawn))),
  );
  const shares = SHARES.map(([key, title]) =>
    tableRow(title, splits.map(([, metrics]) => element("td", {}, percent(metrics[key])))),
  );
  return table(heads, [...rows, ...shares]);
}

function classes(metrics, model) {
  const rows = Object.entries(metrics.classes).map(([name, figure]) =>
    tableRow(
      titleOf(model, name),
      [figure.precision, figure.recall, figure.f1].map((value) => estimate(value, true)),
      `${figure.images} images`,
    ),
  );
  return table(["Precision", "Recall", "F1"].map((title) => head(title)), rows);
}

const titled = (title, heads, rows) => [element("h3", {}, title), scroller(title, table(heads, rows))];

const head = (...words) => element("th", { scope: "col" }, ...words);

function table(heads, rows) {
  return element("table", {}, element("thead", {}, element("tr", {}, element("td"), ...heads)), element("tbody", {}, ...rows));
}

function tableRow(title, cells, note = "") {
  const head = element("th", { scope: "row" }, title);
  if (note) head.append(element("small", {}, note));
  return element("tr", {}, head, ...cells);
}

function estimate({ value, low, high }, drawn) {
  const range = `${(100 * low).toFixed(1)}–${(100 * high).toFixed(1)}`;
  const cell = element("td", {}, percent(value), element("small", {}, range));
  if (drawn) {
    const marks = [onTrack("band", { left: low, width: high - low }), onTrack("point", { left: value })];
    cell.append(element("span", { className: "interval", ariaHidden: "true" }, ...marks));
  }
  return cell;
}

function lineage(model) {
  const { lineage: from, input } = model;
  const made = new Date(from.created);
  const day = Number.isNaN(made.valueOf()) ? from.created : made.toLocaleDateString("en-GB", { dateStyle: "long" });
  const sources = { kaggle: "Kaggle", local: "a local folder", synthetic: "drawn phantoms" };
  return [
    row("Model", model.model ?? model.name, true),
    row("Made on", day),
    row("Backbone", `${from.backbone}, starting from ${from.weights}`),
    row("Trained on", `${from.image_count} distinct images from ${sources[from.data_source] ?? from.data_source}`),
    row("Sees", `${input.width} × ${input.height} grey pixels`),
    row("Calibration", `${model.scaling.method} scaling`),
    row("Licence", model.licence),
    row("MLflow run", from.run_id, true),
    row("Commit", from.git_commit, true),
    row("Data digest", from.data_digest, true),
    row("Model SHA-256", from.model_sha256, true),
  ];
}
