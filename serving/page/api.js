/** The service's HTTP API, relative to the page, so that a path prefix in front of the service works too. */

export const PREDICT = new URL("v1/predict", document.baseURI);
const MODEL = new URL("v1/model", document.baseURI);

/** An answer that is no prediction. `status` is 0 where no answer came at all. */
export class ApiError extends Error {
  constructor({ status, code, message, requestId = "", retryAfter = null }) {
    super(message);
    Object.assign(this, { status, code, requestId, retryAfter });
  }
}

/** Ask for one picture's prediction with heat maps. Throws ApiError, or AbortError when `signal` aborts. */
export async function predict(file, signal) {
  const url = new URL(PREDICT);
  url.searchParams.set("explain", "true");
  const headers = { "Content-Type": contentType(file), Accept: "application/json" };
  return read(url, { method: "POST", body: file, headers, signal });
}

/** The model's card, its tag, and the rules and warnings in words. Throws ApiError. */
export async function readModel() {
  return read(MODEL, { headers: { Accept: "application/json" } });
}

export function contentType(file) {
  return file.type || "application/octet-stream";
}

async function read(url, options) {
  let response, body;
  try {
    response = await fetch(url, { cache: "no-store", credentials: "same-origin", ...options });
    body = await response.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError({ status: 0, code: "unreachable", message: "" });
  }
  const json = parse(body);
  if (response.ok && json) return json;
  throw new ApiError({
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
