/** Draws one prediction: the answer, the probabilities with their limits, and the evidence for and against it. */

import { byId, element, icon, onTrack, row } from "./elements.js";
import { VERDICTS, chance, list, meaningOf, percent, percentages, reasonsOf, titleOf, verdictOf, warningsOf } from "./words.js";

/** Fill the result panel. Returns the sentence for screen readers. */
export function drawResult({ prediction, milliseconds, synthetic }, model) {
  const { decision, label } = prediction;
  const { title, explain } = verdictOf(prediction);
  const shown = percentages(prediction);
  const sure = shown[label];

  byId("answer").hidden = !label;
  if (label) {
    byId("label").textContent = titleOf(model, label);
    byId("confidence").textContent = sure;
  }
  byId("explain").textContent = explain;
  byId("synthetic").hidden = !synthetic;
  byId("bars-title").textContent = meaningOf(prediction);
  byId("bars").classList.toggle("muted", !label);
  byId("bars").replaceChildren(...Object.keys(shown).map((name) => bar(prediction, model, name, shown[name])), ...cancers(prediction, model));
  byId("bars-key").hidden = !label || !model;
  byId("against-title").textContent = label ? "Against trusting this" : "Why";
  const { pro, contra } = evidence(prediction, model);
  fill("against", contra, decision === "accept" ? "refer" : decision);
  fill("for", pro, "accept");
  byId("facts").replaceChildren(
    row("Answered in", `${Math.round(milliseconds)} ms`),
    row("Model", prediction.model, true),
    row("Request", prediction.request_id, true),
  );

  const said = label ? `${titleOf(model, label)}, confidence ${sure}.` : "";
  return [`${title}.`, said, ...reasonsOf(prediction, model)].join(" ");
}

for (const [name, { title, short, tone = name }] of Object.entries(VERDICTS)) {
  if (short) byId("kinds").append(message(tone, element("div", {}, element("h3", {}, title), element("p", {}, short))));
}

// ---- the bars ----

function bar(prediction, model, name, shown) {
  const { label, probabilities } = prediction;
  const marks = [onTrack("fill", { width: probabilities[name] })];
  const said = [];
  const limits = label && model?.thresholds;
  const least = limits?.least_confidence?.[model.classes.indexOf(name)];
  if (least > 0) {
    marks.push(tick(least));
    said.push(`as a label it must reach ${percent(least, 0)}`);
  }
  if (limits && name !== label) {
    marks.push(band(probabilities[label], limits.refer_margin));
    if (probabilities[label] - probabilities[name] < limits.refer_margin) said.push("within the refer band");
  }
  const item = barItem(titleOf(model, name), shown, marks, said, name === label ? "first" : "");
  item.dataset.class = name;
  return item;
}

/** Draw the sum of all cancers, with the limit that overrides the label “normal”. */
function cancers({ label, probabilities }, model) {
  if (!model || label !== model.normal) return [];
  const together = Object.entries(probabilities).reduce((sum, [name, p]) => (name === model.normal ? sum : sum + p), 0);
  const limit = model.thresholds.any_cancer;
  const marks = [onTrack("fill", { width: together }), tick(limit)];
  return [barItem("The cancers together", chance(together), marks, [`from ${percent(limit, 0)} on, “normal” does not stand`], "sum")];
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

/** Collect the reasons for and against trusting the answer, each as text or elements. */
function evidence(prediction, model) {
  const pro = [];
  const contra = reasonsOf(prediction, model);
  const { label, decision, between = [], prediction_set: set, ood_score: score, chest_ct: chest } = prediction;
  if (between.length) contra.push(`The answer is between ${between.map((name) => titleOf(model, name).toLowerCase()).join(" and ")}.`);
  if (label && !prediction.reasons.length && model) pro.push(`None of the ${Object.keys(model.rules).length} rules objects.`);
  if (model) {
    const { ood_limit: limit, chest_ct_limit: least, conformal_coverage: coverage } = model.thresholds;
    if (decision !== "reject") {
      const like = score <= limit;
      (like ? pro : contra).push([
        `${like ? "It looks like" : "It is far from"} the CT slices the model knows: its distance is ${score.toFixed(2)}, the limit ${limit.toFixed(2)}.`,
        meter(score, limit, 1.25 * Math.max(score, limit)),
      ]);
    } else if (chest < least) {
      contra.push([`Its probability to be a chest CT slice is ${chance(chest)}, and must be ${percent(least)}.`, meter(chest, least, 1)]);
    }
    if (set.length) {
      const held = list(set.map((name) => titleOf(model, name).toLowerCase()));
      const odds = `a set calibrated to hold the right class for ${percent(coverage, 0)} of slices like the training ones, without a guarantee`;
      if (set.length === 1) pro.push(`Only one class is left in ${odds}: ${held}.`);
      else contra.push(`More than one class is left in ${odds}: ${held}.`);
    }
    const unseen = label && calibration(prediction, model);
    if (unseen) (unseen.good ? pro : contra).push(unseen.words);
  }
  contra.push(...warningsOf(prediction, model));
  return { pro, contra };
}

function meter(score, limit, most) {
  const fill = onTrack("fill", { width: Math.max(0, score) / most });
  return element("span", { className: "bar-track", ariaHidden: "true" }, fill, tick(limit / most));
}

/**
 * Return how often answers of similar confidence were right on unseen images, from the card's reliability bins.
 * `good`: at least as often as over all of these images. Null if no bin is near enough.
 */
function calibration(prediction, model) {
  const { reliability = [], accuracy } = model.metrics.out_of_fold ?? {};
  const bins = reliability.filter((bin) => bin.images >= 10);
  if (!bins.length) return null;
  const away = (bin) => Math.abs(bin.confidence - prediction.confidence);
  const nearest = bins.reduce((best, bin) => (away(bin) < away(best) ? bin : best));
  if (away(nearest) > 0.1) return null;
  const right = Math.round(nearest.accuracy * nearest.images);
  return {
    good: nearest.accuracy >= accuracy.value,
    words: `Of ${nearest.images} unseen images answered about as confidently, ${right} got the right class.`,
  };
}
