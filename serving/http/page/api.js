/** Calls the service's HTTP API. URLs are relative to the page, so a path prefix in front of the service works. */

import { askForKey, storedKey } from "./keys.js";

const at = (path) => new URL(path, document.baseURI);
export const PREDICT = at("v1/predict");
/** The type of every file that is sent. The service looks at the bytes; a browser only guesses by the name. */
export const FILE_TYPE = "application/octet-stream";

/** The service did not return what was asked for. `status` is 0 if there was no answer at all. */
export class ApiError extends Error {
  constructor({ status = 0, code, message = "", requestId = "", retryAfter = null }) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

/** Request a prediction with heat maps for one picture. Throws ApiError, or AbortError if `signal` aborts. */
export async function predict(file, signal) {
  const url = new URL(PREDICT);
  url.searchParams.set("explain", "true");
  const headers = { "Content-Type": FILE_TYPE, Accept: "application/json" };
  return (await ask(url, { method: "POST", body: file, headers, signal })).json;
}

/** Read the model's card, its tag, and the words of rules and warnings. Throws ApiError. */
export const readModel = async () => (await ask(at("v1/model"))).json;

/** Read the service's limits, gRPC port and samples. Throws ApiError. */
export const readService = async () => (await ask(at("page/service.json"))).json;

/** Load a sample as a File. Throws ApiError. */
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

/** Return Retry-After in seconds, from 1 to 600. The header holds a number or a date. */
function seconds(header) {
  if (!header) return null;
  const value = /^\d+$/.test(header.trim()) ? Number(header) : (Date.parse(header) - Date.now()) / 1000;
  return Number.isFinite(value) ? Math.min(Math.max(Math.ceil(value), 1), 600) : null;
}
