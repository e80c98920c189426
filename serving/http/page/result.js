/** Draws one prediction: the answer, the probabilities with their limits, and the evidence for and against it. */

import { byId, element, icon, onTrack, row } from "./elements.js";
import { TEXT } from "./text.js";
import { cancersOf, chance, list, percent, percentages, reasonsOf, titleOf, verdictOf, warningsOf } from "./words.js";

/** Share of the limit up to which a distance counts as near, not just as within the limit. */
const NEAR = 0.8;
/** Share of right answers from which a bin of the reliability curve is supporting evidence. */
const GOOD = 0.8;

/** Fill the result panel. Returns the sentence for screen readers. */
export function drawResult({ prediction, milliseconds, synthetic }, model) {
  const { decision, label } = prediction;
  const { title, explain } = verdictOf(prediction);
  const shown = percentages(prediction);
  const sure = shown[label];

  byId("answer").hidden = byId("bars-part").hidden = !label;
  byId("bars").replaceChildren();
  if (label) {
    byId("label").textContent = titleOf(model, label);
    byId("confidence").textContent = sure;
    byId("bars").append(...Object.keys(shown).map((name) => bar(prediction, model, name, shown[name])), ...cancers(prediction, model));
  }
  byId("explain").textContent = explain;
  byId("synthetic").hidden = !synthetic;
  byId("bars-key").hidden = !model;
  byId("band-key").hidden = !model?.thresholds.refer_margin;
  const { pro, contra, against } = evidence(prediction, model);
  byId("against-title").textContent = against;
  fill("against", contra, decision === "accept" ? "refer" : decision);
  fill("for", pro, "accept");
  byId("facts").replaceChildren(
    row(TEXT.answeredIn, `${Math.round(milliseconds)} ms`),
    row(TEXT.model, prediction.model, true),
    row(TEXT.page.request, prediction.request_id, true),
  );

  const said = label ? TEXT.said(titleOf(model, label), sure) : "";
  return [`${title}.`, said, ...reasonsOf(prediction, model)].join(" ");
}

for (const [name, tone] of [["accept"], ["refer"], ["unfamiliar", "refer"], ["reject"]]) {
  const { title, short } = TEXT.verdicts[name];
  byId("kinds").append(message(tone ?? name, element("div", {}, element("h3", {}, title), element("p", {}, short))));
}

// ---- the bars ----

function bar(prediction, model, name, shown) {
  const { label, probabilities } = prediction;
  const marks = [onTrack("fill", { width: probabilities[name] })];
  const said = [];
  const limits = model?.thresholds;
  const least = limits?.least_confidence?.[model.classes.indexOf(name)];
  if (least > 0) {
    marks.push(tick(least));
    said.push(TEXT.mustReach(percent(least, 0)));
  }
  if (limits && name !== label) {
    marks.push(band(probabilities[label], limits.refer_margin));
    if (probabilities[label] - probabilities[name] < limits.refer_margin) said.push(TEXT.inBand);
  }
  const item = barItem(titleOf(model, name), shown, marks, said, name === label ? "first" : "");
  item.dataset.class = name;
  return item;
}

/** Draw the sum of all cancers, with the limit that overrides the label "normal". */
function cancers(prediction, model) {
  const together = cancersOf(prediction, model);
  if (together === null) return [];
  const limit = model.thresholds.any_cancer;
  const marks = [onTrack("fill", { width: together }), tick(limit)];
  return [barItem(TEXT.cancers, chance(together), marks, [TEXT.cancerLimit(percent(limit, 0))], "sum")];
}

function barItem(title, shown, marks, said, className) {
  return element(
    "li",
    { className },
    element("span", { className: "bar-name" }, title),
    element("span", { className: "bar-value" }, shown),
    element("span", { className: "bar-track", ariaHidden: "true" }, ...marks),
    element("span", { className: "unseen" }, said.join("; ")),
  );
}

const tick = (at) => onTrack("tick", { left: at });

/** Mark the range in which another class is too close to the label. */
function band(top, margin) {
  const from = Math.max(0, top - margin);
  return onTrack("refer-band", { left: from, width: top - from });
}

// ---- for and against ----

function fill(id, words, tone) {
  byId(`${id}-part`).hidden = !words.length;
  byId(id).replaceChildren(...words.map((one) => message(tone, element("p", {}, ...[one].flat()))));
}

function message(tone, words) {
  const item = element("li", {}, icon(tone), words);
  item.dataset.tone = tone;
  return item;
}

/**
 * Collect the reasons for and against going by the answer, each as text or as text and a meter, and the title of those
 * against it. What is true of nearly every answer is no evidence, such as a distance just within its limit.
 */
export function evidence(prediction, model) {
  const pro = [];
  const contra = reasonsOf(prediction, model);
  const { label, decision, between = [], prediction_set: set, ood_score: score, chest_ct: chest } = prediction;
  const named = (names) => names.map((name) => titleOf(model, name).toLowerCase());
  if (between.length) contra.push(TEXT.between(...named(between)));
  if (label && !prediction.reasons.length) pro.push(TEXT.passed);
  if (model) {
    const { ood_limit: limit, chest_ct_limit: least, conformal_coverage: coverage } = model.thresholds;
    const place = [score.toFixed(2), limit.toFixed(2)];
    if (decision === "reject") {
      if (chest < least) contra.push([TEXT.chestCt(chance(chest), percent(least)), meter(chest, least, 1)]);
    } else if (score > limit) {
      contra.push([TEXT.far(...place), meter(score, limit, 1.25 * score)]);
    } else if (score <= NEAR * limit) {
      pro.push([TEXT.near(...place), meter(score, limit, 1.25 * limit)]);
    }
    if (set.length > 1) contra.push(TEXT.set(list(named(set)), percent(coverage, 0)));
    const validated = label && validation(prediction, model);
    if (validated) (validated.good ? pro : contra).push(validated.words);
  }
  contra.push(...warningsOf(prediction, model));
  return { pro, contra, against: label ? TEXT.contra : TEXT.why };
}

function meter(score, limit, most) {
  const fill = onTrack("fill", { width: Math.max(0, score) / most });
  return element("span", { className: "bar-track", ariaHidden: "true" }, fill, tick(limit / most));
}

/**
 * Return how often answers of similar confidence were right in validation, from the card's reliability bins, and
 * whether that is `good`. Null if no bin is near enough.
 */
function validation(prediction, model) {
  const bins = (model.metrics.out_of_fold?.reliability ?? []).filter((bin) => bin.images >= 10);
  if (!bins.length) return null;
  const away = (bin) => Math.abs(bin.confidence - prediction.confidence);
  const nearest = bins.reduce((best, bin) => (away(bin) < away(best) ? bin : best));
  if (away(nearest) > 0.1) return null;
  const right = Math.round(nearest.accuracy * nearest.images);
  return { good: nearest.accuracy >= GOOD, words: TEXT.validated(right, nearest.images, percent(right / nearest.images, 0)) };
}
