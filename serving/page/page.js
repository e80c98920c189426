/** The page's one flow: a picture comes in, is sent, and its answer or error is shown. */

import { ApiError, predict, readModel } from "./api.js";
import { drawAbout } from "./about.js";
import { offerHeatmaps } from "./heatmap.js";
import { drawRequests } from "./requests.js";
import { drawResult } from "./result.js";
import { bytes, DECISIONS, errorWords, titleOf } from "./words.js";

const byId = (id) => document.getElementById(id);
const main = byId("main");
const input = byId("file");
const picture = byId("picture");

/** Requests sent again by the page itself, for one picture, when the service says when to come back. */
const AUTOMATIC_RETRIES = 5;

let file = null;
let running = null;
let timer = 0;
let retries = 0;
let model = null;

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
  byId("strip").hidden = state === "empty";
  const focused = document.activeElement;
  if (focused === document.body || focused?.closest("[hidden]")) byId("outcome").focus({ preventScroll: true });
}

async function showPicture() {
  byId("file-name").textContent = file.name;
  byId("file-facts").textContent = bytes(file.size);
  byId("slice").hidden = byId("no-preview").hidden = true;
  if (picture.src) URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = `The picture ${file.name}`;
  const mine = file;
  const shown = await picture.decode().then(() => true, () => false);
  if (mine !== file) return;
  byId("slice").hidden = !shown;
  byId("no-preview").hidden = shown;
  if (!shown) return;
  const { naturalWidth: width, naturalHeight: height } = picture;
  byId("screen").style.setProperty("--ratio", width / height);
  byId("file-facts").textContent = `${width} × ${height} · ${bytes(file.size)}`;
}

// ---- asking ----

function take(files) {
  if (!files.length) return;
  [file] = files;
  retries = 0;
  showPicture();
  drawRequests(file);
  ask();
}

async function ask() {
  stop();
  const mine = (running = new AbortController());
  offerHeatmaps(null);
  show("busy", { title: "Reading the picture", symbol: "busy" });
  const started = performance.now();
  timer = setInterval(() => tick(started), 250);
  tick(started);
  try {
    const prediction = await predict(file, mine.signal);
    if (!model) await learn();
    if (mine === running) answered(prediction, performance.now() - started);
  } catch (error) {
    if (mine === running) failed(error);
  }
}

function tick(started) {
  const seconds = Math.floor((performance.now() - started) / 1000);
  byId("elapsed").textContent = seconds < 2 ? "" : `Waiting for ${seconds} s.`;
}

/** End what runs, a request or a countdown. */
function stop() {
  clearInterval(timer);
  running?.abort();
  running = null;
}

function answered(prediction, milliseconds) {
  stop();
  const said = drawResult(prediction, model, milliseconds);
  byId("disclaimer").textContent = prediction.disclaimer;
  offerHeatmaps(prediction, model);
  const { title } = DECISIONS[prediction.decision];
  show("result", { title, symbol: prediction.decision, tone: prediction.decision, said });
}

function failed(error) {
  stop();
  const [title, advice] = errorWords(error);
  const comesBack = error.retryAfter !== null && retries < AUTOMATIC_RETRIES;
  byId("error-advice").textContent = advice;
  fill("error-said", error.message);
  fill("error-request", error.requestId);
  byId("error-facts").hidden = !error.message && !error.requestId;
  byId("countdown").hidden = byId("stop").hidden = true;
  show("error", { title, symbol: "error", said: `${title}. ${advice}${comesBack ? ` Asking again in ${error.retryAfter} seconds.` : ""}` });
  if (comesBack) countDown(error.retryAfter);
}

function fill(id, text) {
  byId(id).textContent = text;
  byId(`${id}-row`).hidden = !text;
}

function countDown(left) {
  retries += 1;
  byId("countdown").hidden = byId("stop").hidden = false;
  const draw = () => (byId("seconds").textContent = `${left} s`);
  draw();
  timer = setInterval(() => {
    left -= 1;
    draw();
    if (left <= 0) ask();
  }, 1000);
}

// ---- the model ----

/** Read the model's card and show it. Where it can't be had, the next answer tries again. */
async function learn() {
  try {
    model = await readModel();
  } catch (error) {
    const soon = error.retryAfter !== null;
    byId("about-body").firstElementChild.textContent = soon ? "The model is loading…" : "The model’s card can’t be read just now.";
    if (soon) setTimeout(() => model ?? learn(), error.retryAfter * 1000);
    return;
  }
  drawAbout(model);
  const titles = model.classes.map((name) => titleOf(model, name));
  byId("class-list").textContent = titles.join(", ");
  byId("disclaimer").textContent = model.disclaimer;
  byId("foot-model").textContent = `Model ${model.model}`;
}

// ---- what a person does ----

input.addEventListener("change", () => {
  take([...input.files]);
  input.value = ""; // so that choosing the same file again is a change
});
for (const button of document.querySelectorAll("[data-action=another]")) {
  button.addEventListener("click", () => input.click());
}
for (const button of document.querySelectorAll("[data-action=retry]")) {
  button.addEventListener("click", () => {
    retries = 0;
    ask();
  });
}
byId("cancel").addEventListener("click", () => failed(new ApiError({ status: 0, code: "cancelled", message: "" })));
byId("stop").addEventListener("click", () => {
  stop();
  byId("countdown").hidden = byId("stop").hidden = true;
  byId("outcome").focus({ preventScroll: true });
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

drawRequests(null);
learn();
