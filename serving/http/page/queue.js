/**
 * Holds the pictures of this visit and requests their predictions, a few at a time. If the service is busy, all wait
 * for as long as its Retry-After says.
 *
 * An item is { file, name, dicom, stack, synthetic, at, state, prediction, error, milliseconds, due }. Its state is
 * `waiting`, `busy`, `result` or `error`. A waiting item with an `error` is requested again at the time `due`.
 */

import { ApiError, predict } from "./api.js";
import { beginning } from "./intake.js";
import { allowAsking } from "./keys.js";
import { TEXT } from "./text.js";
import { bytes } from "./words.js";

const AT_ONCE = 4;
/** Automatic retries for one picture. */
const AUTOMATIC_RETRIES = 6;

/** Errors without a status that may pass. */
const AGAIN = ["cancelled", "unreachable"];

/** Formats that are not read, by their first bytes. Some DICOM files begin like a TIFF. */
const UNREAD = {
  heic: /^.{4}ftyp(hei|hev|mif|msf)/s,
  tiff: /^(II[*+]\0|MM\0[*+])(?!.{124}DICM)/s,
};

export const items = [];

let largest = Infinity;
let busy = 0;
let pausedUntil = 0;
let timer = 0;
let changed = () => {};
let preferred = null;

/** Call `listener` with each item that changes, and with null when only the shown times change. */
export function onChange(listener) {
  changed = listener;
}

export function limitSize(size) {
  largest = size;
}

/** Request this item before the others that wait. */
export function prefer(item) {
  preferred = item;
}

/** Add entries of intake.js. Each becomes an item. One with an error is not requested. */
export function add(entries, synthetic = false) {
  allowAsking();
  const added = entries.map((entry) => ({ ...entry, name: entry.file.name, synthetic, at: new Date(), state: "waiting", retries: 0 }));
  items.push(...added);
  for (const item of added) item.stack?.items.push(item);
  for (const item of added) item.error ? settle(item, "error") : wait(item);
  return added;
}

/** Request a finished or delayed item again. Ignored while it is still open, for example after a double click. */
export function retry(item) {
  if (item.state === "busy" || (item.state === "waiting" && !item.due)) return;
  allowAsking();
  pausedUntil = item.retries = 0;
  wait(item);
}

/** Cancel an open item. If it waits for a retry, it keeps the error that caused the retry. */
export function cancel(item) {
  if (!open(item)) return;
  item.controller?.abort();
  settle(item, "error", { error: item.due ? item.error : new ApiError({ code: "cancelled" }) });
}

/** Forget every picture and abort running requests. */
export function clear() {
  for (const item of items.splice(0)) {
    item.controller?.abort();
    Object.assign(item, { state: "gone", controller: null }); // a late answer is ignored
  }
  pausedUntil = 0;
}

export const open = (item) => item.state === "waiting" || item.state === "busy";
/** Whether the item failed, and might not if it were sent again. */
export const retriable = ({ state, error }) => state === "error" && (AGAIN.includes(error.code) || [401, 408, 429].includes(error.status) || error.status >= 500);
export const secondsLeft = (due) => Math.max(0, Math.ceil((due - Date.now()) / 1000));
/** Seconds until the queue continues, or 0. */
export const pause = () => (Date.now() < pausedUntil ? secondsLeft(pausedUntil) : 0);

function wait(item) {
  settle(item, "waiting", { error: null, prediction: null, due: 0 });
  timer ||= setInterval(tick, 250);
  pump();
}

function settle(item, state, more) {
  Object.assign(item, { state, due: 0, controller: null, ...more });
  changed(item);
}

function tick() {
  if (!items.some(open)) {
    clearInterval(timer);
    timer = 0;
  }
  pump();
  changed(null);
}

function pump() {
  if (Date.now() < pausedUntil) return;
  while (busy < AT_ONCE) {
    const ready = items.filter((item) => item.state === "waiting" && Date.now() >= item.due);
    const next = ready.includes(preferred) ? preferred : ready[0];
    if (!next) return;
    run(next);
  }
}

async function run(item) {
  const controller = new AbortController();
  busy += 1;
  settle(item, "busy", { controller, error: null, started: performance.now() });
  const mine = () => item.controller === controller;
  try {
    await check(item.file);
    const prediction = await predict(item.file, controller.signal);
    if (mine()) settle(item, "result", { prediction, milliseconds: performance.now() - item.started });
  } catch (error) {
    if (mine()) fail(item, error);
  }
  busy -= 1;
  pump();
}

/** Refuse files that the service would refuse anyway, before they are sent. Throws ApiError. */
async function check(file) {
  const text = await beginning(file).catch(() => {
    throw new ApiError({ code: "unreadable" });
  });
  const code = Object.keys(UNREAD).find((kind) => UNREAD[kind].test(text));
  if (code) throw new ApiError({ code });
  if (file.size > largest) {
    throw new ApiError({ status: 413, code: "body_too_large", message: TEXT.tooLarge(bytes(largest), bytes(file.size)) });
  }
}

function fail(item, error) {
  const wait = error.code === "unreachable" ? Math.min(30, 2 ** (item.retries + 1)) : error.retryAfter;
  if (!wait || item.retries >= AUTOMATIC_RETRIES) {
    settle(item, "error", { error });
    return;
  }
  item.retries += 1;
  const due = Date.now() + 1000 * wait;
  pausedUntil = Math.max(pausedUntil, due);
  settle(item, "waiting", { error, due });
}

// The network is back, so countdowns end.
window.addEventListener("online", () => {
  pausedUntil = 0;
  for (const item of items) if (item.due) item.due = Date.now();
});
