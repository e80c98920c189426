/** Connects the parts of the page: takes pictures, queues them, and shows the selected one's answer or error. */

import { drawAbout } from "./about.js";
import { readModel, readService } from "./api.js";
import { byId } from "./elements.js";
import { offerHeatmaps } from "./heatmap.js";
import { clearHistory, drawHistory, nameModel, onOpen } from "./history.js";
import { dropped, gather } from "./intake.js";
import { add, cancel, clear, items, limitSize, onChange, open, pause, prefer, retriable, retry, secondsLeft } from "./queue.js";
import { drawResult } from "./result.js";
import { drawSample, offerSamples } from "./samples.js";
import { drawSnippets } from "./snippets.js";
import { TEXT } from "./text.js";
import { clearThumbnails, drawThumbnails, mark, onChoose } from "./thumbnails.js";
import { showPicture } from "./viewer.js";
import { errorWords, titleOf, verdictOf } from "./words.js";

const main = byId("main");
const input = byId("file");

/** Seconds after which the page explains a wait. */
const LONG = 5;

let selected = null;
let model = null;
let service = null;
let stackView = null; // loaded with the first stack

// ---- what is on screen ----

function show(state, { title, symbol, tone = state, said = title }) {
  main.dataset.state = state;
  main.dataset.tone = tone;
  main.ariaBusy = String(state === "busy");
  for (const panel of document.querySelectorAll("[data-panel]")) panel.hidden = panel.dataset.panel !== state;
  byId("outcome").textContent = title;
  byId("outcome-icon").firstElementChild.setAttribute("href", `#icon-${symbol}`);
  byId("status").textContent = said;
  byId("prompt").hidden = state !== "empty";
  byId("facts-strip").hidden = state === "empty";
  const focused = document.activeElement;
  if (focused === document.body || focused?.closest("[hidden]")) byId("outcome").focus({ preventScroll: true });
}

function select(item) {
  selected = item;
  prefer(item);
  mark(item);
  stackView?.drawStack(item, model);
  drawSnippets(item?.file, service);
  draw();
}

function draw() {
  const { state, prediction, error } = selected ?? { state: "empty" };
  offerHeatmaps(prediction, model, (standard) => showPicture(selected, standard), !selected?.dicom);
  if (state === "empty") {
    show("empty", { title: TEXT.verdicts.empty.title, symbol: "info", said: "" });
  } else if (state === "result") {
    const said = drawResult(selected, model);
    byId("disclaimer").textContent = prediction.disclaimer;
    show("result", { title: verdictOf(prediction).title, symbol: prediction.decision, tone: prediction.decision, said });
  } else if (error) {
    drawError(selected);
  } else {
    show("busy", { title: state === "busy" ? TEXT.readingPicture : TEXT.waitingTurn, symbol: "busy" });
    tick();
  }
}

function drawError(item) {
  const { error, due } = item;
  const [title, advice] = errorWords(error);
  byId("error-advice").textContent = advice;
  fill("error-said", error.message);
  fill("error-request", error.requestId);
  byId("error-facts").hidden = !error.message && !error.requestId;
  byId("countdown").hidden = byId("stop").hidden = !due;
  byId("retry").hidden = !due && !retriable(item);
  const again = due ? TEXT.againSaid(secondsLeft(due)) : "";
  show("error", { title, symbol: "error", said: `${title}. ${advice}${again}` });
  tick();
}

function fill(id, text) {
  byId(id).textContent = text;
  byId(`${id}-row`).hidden = !text;
}

function tick() {
  if (selected?.due) byId("seconds").textContent = `${secondsLeft(selected.due)} s`;
  if (selected?.state === "busy") {
    const seconds = Math.floor((performance.now() - selected.started) / 1000);
    const slow = seconds >= LONG ? TEXT.slow : "";
    byId("elapsed").textContent = seconds < 2 ? TEXT.sent : `${TEXT.sentFor(seconds)}${slow}`;
  } else if (selected?.state === "waiting") {
    const again = pause();
    byId("elapsed").textContent = again ? TEXT.busyAgain(again) : TEXT.othersFirst;
  }
}

// ---- what comes in ----

/** Add the files to the queue, and show the first picture, or the middle of a stack. Returns their items. */
async function take(files, synthetic = false) {
  if (!files.length) return [];
  const entries = await gather(files);
  if (!stackView && entries.some(({ stack }) => stack)) {
    stackView = await import("./later/stack.js");
    stackView.onScroll(select);
  }
  const added = add(entries, synthetic);
  const { stack } = added[0];
  select(stack ? stack.items[Math.floor(stack.items.length / 2)] : added[0]);
  return added;
}

/** Show an item of the history. */
function openItem(item) {
  select(item);
  main.scrollIntoView();
  byId("outcome").focus({ preventScroll: true });
}

onChange((item) => {
  if (item?.state === "result" && !model) learn();
  drawThumbnails(item, selected, model);
  drawHistory(item);
  drawSample(item, model);
  if (item?.stack && item.stack === selected?.stack) stackView.drawStack(selected, model);
  if (item === null) tick();
  else if (item === selected) draw();
  if (item && items.length > 1 && !items.some(open)) byId("status").textContent = `${byId("progress-words").textContent}.`;
});
onChoose(select);
onOpen(openItem);

// ---- the model and the service ----

/** Read the model's card and show it. If that fails, the next answer tries again. */
async function learn() {
  try {
    model = await readModel();
  } catch (error) {
    const soon = error.retryAfter !== null;
    byId("about-body").firstElementChild.textContent = soon ? TEXT.loading : TEXT.cardUnread(errorWords(error)[0]);
    if (soon) setTimeout(() => model ?? learn(), error.retryAfter * 1000);
    return;
  }
  drawAbout(model);
  nameModel(model);
  const titles = model.classes.map((name) => titleOf(model, name));
  byId("class-list").textContent = titles.join(", ");
  byId("disclaimer").textContent = model.disclaimer;
  byId("foot-model").textContent = TEXT.footModel(model.model);
  items.forEach((item) => [drawThumbnails(item, selected, model), drawHistory(item)]);
  if (selected) select(selected);
}

async function learnService() {
  try {
    service = await readService();
  } catch {
    return; // the page works without it, but offers no samples
  }
  limitSize(service.max_body_bytes);
  offerSamples(service.samples, take);
  drawSnippets(selected?.file, service);
}

// ---- what the user does ----

function onClick(selector, act) {
  for (const button of document.querySelectorAll(selector)) button.addEventListener("click", act);
}

for (const chooser of [input, byId("camera")]) {
  chooser.addEventListener("change", () => {
    take([...chooser.files]);
    chooser.value = ""; // choosing the same file again then counts as a change
  });
}
onClick("[data-action=another]", () => input.click());
onClick("#retry", () => retry(selected));
onClick("#cancel, #stop", () => {
  cancel(selected);
  byId("outcome").focus({ preventScroll: true });
});
onClick("#clear", () => {
  clear();
  clearThumbnails();
  clearHistory();
  select(null);
});

document.addEventListener("paste", (event) => take([...event.clipboardData.files]));

let depth = 0; // dragenter and dragleave come for every element on the way
const dragged = (by) => (event) => {
  event.preventDefault();
  depth = Math.max(0, depth + by);
  main.classList.toggle("dragged", depth > 0);
};
document.addEventListener("dragenter", dragged(1));
document.addEventListener("dragleave", dragged(-1));
document.addEventListener("dragover", (event) => event.preventDefault());
document.addEventListener("drop", (event) => {
  dragged(-depth)(event);
  dropped(event.dataTransfer).then(take);
});

byId("outcome").textContent = TEXT.verdicts.empty.title;
drawSnippets(null, null);
learn();
learnService();
