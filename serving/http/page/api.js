/** The service's HTTP API, relative to the page, so that a path prefix in front of the service works too. */

import { askForKey, storedKey } from "./keys.js";

const at = (path) => new URL(path, document.baseURI);
export const PREDICT = at("v1/predict");
/** Of each file: a browser's guess goes by its name, the service by its bytes. */
export const FILE_TYPE = "application/octet-stream";

/** An answer that is no prediction. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor({ status = 0, code, message = "", requestId = "", retryAfter = null }) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

/** Ask for one picture's prediction with heat maps. Throws ApiError, or AbortError when `signal` aborts. */
export async function predict(file, signal) {
  const url = new URL(PREDICT);
  url.searchParams.set("explain", "true");
  const headers = { "Content-Type": FILE_TYPE, Accept: "application/json" };
  return (await ask(url, { method: "POST", body: file, headers, signal })).json;
}

/** The model's card, its tag, and the rules and warnings in words. Throws ApiError. */
export const readModel = async () => (await ask(at("v1/model"))).json;

/** This service's limits, its gRPC port and the samples it offers. Throws ApiError. */
export const readService = async () => (await ask(at("page/service.json"))).json;

/** One of the samples as a File. Throws ApiError. */
export async function readSample({ name, url }) {
  const { blob } = await ask(at(url), { as: "blob" });
  return new File([blob], name);
}

async function ask(url, { as = "json", ...options } = {}) {
  for (;;) {
    const key = storedKey();
    const headers = { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) };
    const answer = await send(url, as, { cache: "no-store", credentials: "same-origin", ...options, headers });
    if (answer.response.ok && (answer.json || answer.blob)) return answer;
    if (answer.response.status === 401 && (await askForKey(key))) continue;
    throw refusal(answer);
  }
}

async function send(url, as, options) {
  try {
    const response = await fetch(url, options);
    if (as === "blob" && response.ok) return { response, blob: await response.blob() };
    return { response, json: parse(await response.text()) };
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ code: "unreachable" });
  }
}

function refusal({ response, json }) {
  return new ApiError({
    status: response.status,
    code: json?.error?.code ?? "unexpected",
    message: json?.error?.message ?? `HTTP ${response.status}`,
    requestId: json?.error?.request_id ?? response.headers.get("X-Request-ID") ?? "",
    retryAfter: seconds(response.headers.get("Retry-After")),
  });
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

/** Retry-After in seconds: the header holds a number or a date. */
function seconds(header) {
  if (!header) return null;
  const value = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.min(Math.max(Math.ceil(value), 1), 600) : null;
}
