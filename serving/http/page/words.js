/** Puts the words of text.js into the page, and formats titles, percentages and sizes with them. */

import { TEXT } from "./text.js";

document.documentElement.lang = TEXT.language;
for (const node of document.querySelectorAll("[data-text]")) node.textContent = TEXT.page[node.dataset.text];
for (const node of document.querySelectorAll("[data-label]")) node.setAttribute("aria-label", TEXT.page[node.dataset.label]);

/** Return the name of an answer in TEXT.verdicts. An unfamiliar slice is referred, but has no label. */
export function kindOf({ decision, label, reasons }) {
  if (decision === "refer" && !label) return "unfamiliar";
  if (decision === "reject" && !reasons.includes("not_chest_ct")) return "unusable";
  return decision;
}

/** Return the title and the explanation of an answer. */
export const verdictOf = (prediction) => TEXT.verdicts[kindOf(prediction)];

/** Return the title of an ApiError and the advice that goes with it. */
export function errorWords({ code, status }) {
  return TEXT.errors[code] ?? TEXT.statuses[status] ?? TEXT.statuses[status >= 500 ? 500 : 400];
}

export const percent = (share, digits = 1) => `${(100 * share).toFixed(digits)}\u00a0%`;

/** Return each class's percentage with one decimal. They sum to exactly 100.0 (largest remainder method). */
export function percentages({ probabilities }) {
  const names = Object.keys(probabilities);
  const exact = names.map((name) => probabilities[name] * 1000);
  const whole = exact.map(Math.floor);
  const missing = Math.round(exact.reduce((a, b) => a + b, 0)) - whole.reduce((a, b) => a + b, 0);
  const order = exact.map((value, i) => i).sort((a, b) => exact[b] - whole[b] - (exact[a] - whole[a]));
  for (const i of order.slice(0, missing)) whole[i] += 1;
  return Object.fromEntries(names.map((name, i) => [name, chance(probabilities[name], whole[i] / 1000)]));
}

/** Format a probability. No model is certain: if only rounding makes `share` 0 or 100 %, return a bound. */
export function chance(share, rounded = share) {
  if (share > 0 && rounded < 0.0005) return TEXT.under(percent(0.001));
  return rounded < 0.9995 ? percent(rounded) : TEXT.over(percent(0.999));
}

export function bytes(size) {
  if (size < 1000) return `${size} B`;
  return size < 1e6 ? `${Math.round(size / 1000)} kB` : `${(size / 1e6).toFixed(1)} MB`;
}

export const plain = (name) => sentence(name.replaceAll(/[_-]/g, " "));

export const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Return the title of a class from the card, or its plain name if the card is not read. */
export const titleOf = (model, name) => sentence(model?.titles?.[name] ?? plain(name));

export function list(items) {
  return items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} ${TEXT.or} ${items.at(-1)}`;
}

/** Return the rules that object in words. */
export const reasonsOf = ({ reasons }, model) => reasons.map((name) => TEXT.rules[name] ?? model?.rules?.[name] ?? plain(name));

/** Return the warnings in words. Probabilities that mean nothing are not shown, so that warning is left out. */
export const warningsOf = ({ warnings }, model) =>
  warnings.filter((name) => name !== "meaningless_probabilities").map((name) => TEXT.warnings[name] ?? model?.warnings?.[name] ?? plain(name));

/** Return the probability of all cancers together if the label is normal, which they may overrule; otherwise null. */
export function cancersOf({ label, probabilities }, model) {
  if (!label || label !== model?.normal) return null;
  return Object.entries(probabilities).reduce((sum, [name, share]) => (name === label ? sum : sum + share), 0);
}

/** Return a queue item's outcome in a few words, with its tone (which also names its symbol). */
export function outcome(item, model) {
  const { state, prediction, error, due } = item;
  if (state === "busy") return { words: TEXT.reading, tone: "busy" };
  if (state === "waiting") return { words: due ? TEXT.waitsForRetry : TEXT.waiting, tone: "busy" };
  if (state === "error") return { words: errorWords(error)[0], tone: "error" };
  const { title } = verdictOf(prediction);
  const label = prediction.label && titleOf(model, prediction.label);
  const referred = label && prediction.decision === "refer";
  return { words: referred ? TEXT.referred(title, label) : label || title, tone: prediction.decision };
}

/** Return how many of the items have each answer, in words; empty if none has one. */
export function countsOf(items) {
  const titles = items.filter((item) => item.prediction).map((item) => verdictOf(item.prediction).title);
  const each = [...new Set(titles)].map((title) => [title, titles.filter((other) => other === title).length]);
  return each.length ? TEXT.counts(each) : "";
}
