/** Shows this visit's pictures and answers as a table, a CSV file and a printed report. They stay in this tab's memory. */

import { byId, element, pngUrl } from "./elements.js";
import { items, open } from "./queue.js";
import { evidence } from "./result.js";
import { TEXT } from "./text.js";
import { bytes, cancersOf, chance, countsOf, errorWords, outcome, percentages, titleOf, verdictOf } from "./words.js";

const rows = new Map();

let current = null;
let choose = () => {};

/** Call `listener` with the item whose row is opened. */
export function onOpen(listener) {
  choose = listener;
}

export function nameModel(model) {
  current = model;
}

export function drawHistory(item) {
  if (!item || item.state === "gone") return;
  if (!rows.has(item)) {
    rows.set(item, element("tr"));
    byId("history-rows").append(rows.get(item));
  }
  byId("history").hidden = false;
  rows.get(item).replaceChildren(...cells(item));
  byId("history-counts").textContent = countsOf(items);
}

export function clearHistory() {
  rows.clear();
  byId("history-rows").replaceChildren();
  byId("history").hidden = true;
}

const time = (item) => item.at.toLocaleTimeString(TEXT.locale);

function cells(item) {
  const { prediction, error } = item;
  const decision = prediction ? verdictOf(prediction).title : outcome(item, current).words;
  const label = prediction?.label ? titleOf(current, prediction.label) : "";
  const sure = prediction?.label ? percentages(prediction)[prediction.label] : "";
  const id = prediction?.request_id ?? error?.requestId ?? "";
  const name = element("button", { type: "button", className: "link" }, item.name);
  name.addEventListener("click", () => choose(item));
  const row = [time(item), name, decision, label, sure].map((content) => element("td", {}, content));
  return [...row, element("td", { className: "code" }, id)];
}

// ---- CSV ----

/** Quote a CSV field (RFC 4180). A leading apostrophe keeps spreadsheets from reading text as a formula. */
function field(value) {
  const text = String(value ?? "");
  const safe = typeof value === "string" && /^[=+\-@\t\r]/.test(text) ? `'${text}` : text;
  return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

function csv() {
  const done = items.filter((item) => !open(item));
  const classes = current?.classes ?? Object.keys(done.find((item) => item.prediction)?.prediction.probabilities ?? {});
  const head = ["time", "file", "synthetic", "decision", "label", "confidence", ...classes, "ood_score", "chest_ct", "prediction_set", "reasons", "warnings", "error", "message", "model", "request_id", "disclaimer"];
  const lines = done.map(({ at, name, synthetic, prediction: p, error }) => [
    at.toISOString(), name, synthetic, p?.decision, p?.label, p?.confidence, ...classes.map((name) => p?.probabilities[name]),
    p?.ood_score, p?.chest_ct, p?.prediction_set.join(" "), p?.reasons.join(" "), p?.warnings.join(" "), error?.code, error?.message,
    p?.model, p?.request_id ?? error?.requestId, p?.disclaimer ?? byId("disclaimer").textContent,
  ]);
  return [head, ...lines].map((line) => `${line.map(field).join(",")}\r\n`).join("");
}

byId("export").addEventListener("click", () => {
  const url = URL.createObjectURL(new Blob([csv()], { type: "text/csv;charset=utf-8" }));
  element("a", { href: url, download: "chestct-visit.csv" }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
});

// ---- the report ----

function entry(item) {
  const { prediction, error } = item;
  const picture = prediction?.preview && element("img", { src: pngUrl(prediction.preview), alt: TEXT.sawOf(item.name) });
  const said = prediction ? verdictOf(prediction).title : errorWords(error)[0];
  const lines = [`${time(item)}, ${bytes(item.file.size)}${item.synthetic ? TEXT.syntheticSaid : ""}.`];
  if (prediction) {
    const { label } = prediction;
    const shares = percentages(prediction);
    const each = Object.entries(shares).map(([name, share]) => `${titleOf(current, name)} ${share}`);
    const together = cancersOf(prediction, current);
    if (together !== null) each.push(`${TEXT.cancers} ${chance(together)}`);
    if (label) lines.push(TEXT.said(titleOf(current, label), `${shares[label]}`));
    lines.push(verdictOf(prediction).explain);
    if (label) lines.push(`${TEXT.page.probabilities}: ${each.join(", ")}.`);
    const { pro, contra, against } = evidence(prediction, current);
    for (const [title, said] of [[against, contra], [TEXT.page.pro, pro]]) {
      if (said.length) lines.push(`${title}: ${said.map((one) => [one].flat()[0]).join(" ")}`);
    }
    lines.push(TEXT.modelAndRequest(prediction.model, prediction.request_id));
  } else {
    lines.push(errorWords(error)[1]);
  }
  const text = element("div", {}, element("h3", {}, item.name), element("p", {}, element("b", {}, said)), ...lines.map((line) => element("p", {}, line)));
  return element("article", {}, ...(picture ? [picture] : []), text);
}

// The report exists only while the page is printed, by the button or by the browser's own command.
window.addEventListener("beforeprint", () => {
  const done = items.filter((item) => !open(item));
  byId("report-disclaimer").textContent = byId("disclaimer").textContent;
  byId("report-about").textContent = `${TEXT.printed(done.length, new Date().toLocaleString(TEXT.locale))} ${byId("foot-model").textContent}`;
  byId("report-entries").replaceChildren(...done.map(entry));
});
window.addEventListener("afterprint", () => byId("report-entries").replaceChildren());
byId("print").addEventListener("click", () => window.print());
