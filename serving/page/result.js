/** Draws one prediction. */

import { DECISIONS, element, icon, list, percent, percentages, plain, row, sentence, titleOf } from "./words.js";

const byId = (id) => document.getElementById(id);

/** Fill the result panel; returns the sentence a screen reader is told. */
export function drawResult(prediction, model, milliseconds) {
  const { decision, label } = prediction;
  const names = Object.keys(prediction.probabilities);
  const shown = percentages(Object.values(prediction.probabilities));
  const sure = label && shown[names.indexOf(label)];

  byId("answer").hidden = !label;
  if (label) {
    byId("label").textContent = titleOf(model, label);
    byId("confidence").textContent = sure;
  }
  byId("explain").textContent = [DECISIONS[decision].explain, label ? calibration(prediction, model) : ""].join(" ").trim();
  byId("explain").hidden = !byId("explain").textContent;
  byId("messages").replaceChildren(...messages(prediction, model));
  byId("bars-title").textContent = label ? "Probabilities" : "Probabilities, meaningless for this picture";
  byId("bars").classList.toggle("muted", !label);
  byId("bars").replaceChildren(...names.map((name, i) => bar(prediction, model, name, shown[i])));
  byId("facts").replaceChildren(...facts(prediction, model, milliseconds));

  const said = label ? `${titleOf(model, label)}, confidence ${sure}.` : "";
  return [`${DECISIONS[decision].title}.`, said, ...reasons(prediction, model)].join(" ");
}

const reasons = (prediction, model) => prediction.reasons.map((name) => model?.rules?.[name] ?? plain(name));

function messages(prediction, model) {
  const warnings = prediction.warnings.map((name) => model?.warnings?.[name] ?? plain(name));
  return [
    ...reasons(prediction, model).map((words) => message(prediction.decision, prediction.decision, "Why", words)),
    ...warnings.map((words) => message("refer", "error", "Warning", words)),
  ];
}

function message(tone, symbol, kind, words) {
  const item = element("li", {}, icon(symbol), element("p", {}, element("b", {}, `${kind}: `), words));
  item.dataset.tone = tone;
  return item;
}

function bar(prediction, model, name, shown) {
  const fill = element("i", {});
  fill.style.width = `${100 * prediction.probabilities[name]}%`;
  const item = element(
    "li",
    {},
    element("span", { className: "bar-name" }, titleOf(model, name)),
    element("span", { className: "bar-value" }, shown),
    element("span", { className: "bar-track", ariaHidden: "true" }, fill),
  );
  item.dataset.class = name;
  item.classList.toggle("first", name === prediction.label);
  return item;
}

/** How often answers this confident were right on images the model had not seen, from the card's reliability bins. */
function calibration(prediction, model) {
  const bins = (model?.metrics?.out_of_fold?.reliability ?? []).filter((bin) => bin.images >= 10);
  if (!bins.length) return "";
  const away = (bin) => Math.abs(bin.confidence - prediction.confidence);
  const nearest = bins.reduce((best, bin) => (away(bin) < away(best) ? bin : best));
  if (away(nearest) > 0.1) return "";
  const right = Math.round(nearest.accuracy * nearest.images);
  return `Of ${nearest.images} unseen images answered about as confidently, ${right} got the right class.`;
}

function facts(prediction, model, milliseconds) {
  const rows = [];
  const thresholds = model?.thresholds;
  if (prediction.prediction_set.length) {
    const set = list(prediction.prediction_set.map((name) => titleOf(model, name).toLowerCase()));
    const odds = thresholds ? `Meant to hold the true class for ${percent(thresholds.conformal_coverage, 0)} of chest-CT slices.` : "";
    rows.push(row("Prediction set", described(sentence(set), odds)));
  }
  const score = prediction.ood_score.toFixed(2);
  const limit = thresholds ? `Above ${thresholds.ood_limit.toFixed(2)} the answer is “Not a chest CT”.` : "";
  rows.push(row("Unlike known CT", described(score, limit)));
  rows.push(row("Answered in", `${Math.round(milliseconds)} ms`));
  rows.push(row("Model", prediction.model, true));
  rows.push(row("Request", prediction.request_id, true));
  return rows;
}

function described(value, note) {
  const fragment = document.createDocumentFragment();
  fragment.append(value);
  if (note) fragment.append(element("small", {}, note));
  return fragment;
}
