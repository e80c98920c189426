/** Shows this visit's pictures and answers as a table, a CSV file and a printed report. They stay in this tab's memory. */

import { byId, element, pngUrl } from "./elements.js";
import { items, open } from "./queue.js";
import { bytes, errorWords, meaningOf, outcome, percentages, reasonsOf, titleOf, verdictOf, warningsOf } from "./words.js";

const rows = new Map();

let current = null;

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
  byId("history-counts").textContent = counts();
}

function counts() {
  const titles = items.filter((item) => item.prediction).map((item) => verdictOf(item.prediction).title);
  const each = [...new Set(titles)].map((title) => `${title}: ${titles.filter((other) => other === title).length}`);
  return each.length ? `${each.join(", ")}.` : "";
}

export function clearHistory() {
  rows.clear();
  byId("history-rows").replaceChildren();
  byId("history").hidden = true;
}

const time = (item) => item.at.toLocaleTimeString("en-GB");

function cells(item) {
  const { prediction, error } = item;
  const decision = prediction ? verdictOf(prediction).title : outcome(item, current).words;
  const label = prediction?.label ? titleOf(current, prediction.label) : "";
  const sure = prediction?.label ? percentages(prediction)[prediction.label] : "";
  const id = prediction?.request_id ?? error?.requestId ?? "";
  const row = [time(item), item.name, decision, label, sure].map((text) => element("td", {}, text));
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
  const picture = prediction?.preview && element("img", { src: pngUrl(prediction.preview), alt: `What the model saw of ${item.name}` });
  const said = prediction ? verdictOf(prediction).title : errorWords(error)[0];
  const lines = [`${time(item)}, ${bytes(item.file.size)}${item.synthetic ? ". Synthetic: drawn, not of any patient" : ""}.`];
  if (prediction) {
    const shares = percentages(prediction);
    if (prediction.label) lines.push(`${titleOf(current, prediction.label)}, ${shares[prediction.label]} confidence.`);
    const each = Object.entries(shares).map(([name, share]) => `${titleOf(current, name)} ${share}`);
    const words = [...reasonsOf(prediction, current), ...warningsOf(prediction, current)];
    lines.push(`${meaningOf(prediction)}: ${each.join(", ")}.`, ...words, `Model ${prediction.model}, request ${prediction.request_id}.`);
  }
  const text = element("div", {}, element("h3", {}, item.name), element("p", {}, element("b", {}, said)), ...lines.map((line) => element("p", {}, line)));
  return element("article", {}, ...(picture ? [picture] : []), text);
}

// The report exists only while the page is printed, by the button or by the browser's own command.
window.addEventListener("beforeprint", () => {
  const done = items.filter((item) => !open(item));
  byId("report-disclaimer").textContent = byId("disclaimer").textContent;
  byId("report-about").textContent = `${done.length} pictures, printed on ${new Date().toLocaleString("en-GB")}. ${byId("foot-model").textContent}`;
  byId("report-entries").replaceChildren(...done.map(entry));
});
window.addEventListener("afterprint", () => byId("report-entries").replaceChildren());
byId("print").addEventListener("click", () => window.print());
