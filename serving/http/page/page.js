/** Connects the parts of the page: takes pictures, queues them, and shows the selected one's answer or error. */

import { drawAbout } from "./about.js";
import { readModel, readService } from "./api.js";
import { byId } from "./elements.js";
import { offerHeatmaps } from "./heatmap.js";
import { clearHistory, drawHistory, nameModel } from "./history.js";
import { add, cancel, clear, items, limitSize, onChange, open, pause, retry, secondsLeft } from "./queue.js";
import { drawResult } from "./result.js";
import { offerSamples } from "./samples.js";
import { drawSnippets } from "./snippets.js";
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
  mark(item);
  drawSnippets(item?.file, service);
  draw();
}

function draw() {
  const { state, prediction, error } = selected ?? { state: "empty" };
  offerHeatmaps(prediction, model, (standard) => showPicture(selected, standard));
  if (state === "empty") {
    show("empty", { title: "One slice, one of four answers", symbol: "info", said: "" });
  } else if (state === "result") {
    const said = drawResult(selected, model);
    byId("disclaimer").textContent = prediction.disclaimer;
    show("result", { title: verdictOf(prediction).title, symbol: prediction.decision, tone: prediction.decision, said });
  } else if (error) {
    drawError(selected);
  } else {
    show("busy", { title: state === "busy" ? "Reading the picture" : "Waiting its turn", symbol: "busy" });
    tick();
  }
}

function drawError({ error, due }) {
  const [title, advice] = errorWords(error);
  byId("error-advice").textContent = advice;
  fill("error-said", error.message);
  fill("error-request", error.requestId);
  byId("error-facts").hidden = !error.message && !error.requestId;
  byId("countdown").hidden = byId("stop").hidden = !due;
  const again = due ? ` Asking again in ${secondsLeft(due)} seconds.` : "";
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
    const slow = seconds >= LONG ? " The network is slow, or the service busy; Cancel ends it." : "";
    byId("elapsed").textContent = seconds < 2 ? "Sent." : `Sent. Waiting for ${seconds} s.${slow}`;
  } else if (selected?.state === "waiting") {
    const again = pause();
    byId("elapsed").textContent = again ? `The service is busy. Asking again in ${again} s.` : "Other pictures come first.";
  }
}

// ---- what comes in ----

function take(files, synthetic = false) {
  if (!files.length) return;
  select(add(files, synthetic)[0]);
}

onChange((item) => {
  if (item?.state === "result" && !model) learn();
  drawThumbnails(item, selected, model);
  drawHistory(item);
  if (item === null) tick();
  else if (item === selected) draw();
  if (item && items.length > 1 && !items.some(open)) byId("status").textContent = `${byId("progress-words").textContent}.`;
});
onChoose(select);

// ---- the model and the service ----

/** Read the model's card and show it. If that fails, the next answer tries again. */
async function learn() {
  try {
    model = await readModel();
  } catch (error) {
    const soon = error.retryAfter !== null;
    byId("about-body").firstElementChild.textContent = soon ? "The model is loading…" : `The model’s card can’t be read just now. ${errorWords(error)[0]}.`;
    if (soon) setTimeout(() => model ?? learn(), error.retryAfter * 1000);
    return;
  }
  drawAbout(model);
  nameModel(model);
  const titles = model.classes.map((name) => titleOf(model, name));
  byId("class-list").textContent = titles.join(", ");
  byId("disclaimer").textContent = model.disclaimer;
  byId("foot-model").textContent = `Model ${model.model}`;
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
onClick("[data-action=retry]", () => retry(selected));
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
  take([...event.dataTransfer.files]);
});

drawSnippets(null, null);
learn();
learnService();
