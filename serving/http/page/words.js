/** The words that people read: titles, errors, percentages and sizes. */

/** The answers that a picture can get. `tone` is that of the decision, and also names the symbol. */
export const VERDICTS = {
  accept: {
    title: "The label stands",
    short: "One class, with its confidence. No rule objects.",
    explain: "No rule objects to this answer. It is still a model’s answer, not a finding.",
  },
  refer: {
    title: "A person should look",
    short: "Too close to call, or a cancer can’t be ruled out.",
    explain: "This is the most probable class, but not firm enough to go by.",
  },
  unfamiliar: {
    title: "Unfamiliar chest CT",
    tone: "refer",
    short: "Unlike those the model was trained on. No label.",
    explain: "There is no label. A person should look.",
  },
  reject: {
    title: "Not a chest CT",
    short: "Such as an X-ray or a photograph, or a slice that is not usable. No label.",
    explain: "There is no label.",
  },
  unusable: { title: "Not usable as it is", explain: "There is no label. What is named below must change first." },
};

/** Return the title and the explanation of an answer. An unfamiliar slice is referred, but has no label. */
export function verdictOf({ decision, label, reasons }) {
  if (decision === "refer" && !label) return VERDICTS.unfamiliar;
  if (decision === "reject" && !reasons.includes("not_chest_ct")) return VERDICTS.unusable;
  return VERDICTS[decision];
}

const AGAIN = "The picture is still here: Retry sends it again.";
const SAVE = "It is not read here. Save it as PNG or JPEG.";
const ERRORS = {
  heic: ["This is a HEIC picture", `${SAVE} iPhones take JPEGs under Settings, Camera, Formats.`],
  tiff: ["This is a TIFF picture", SAVE],
  cancelled: ["Cancelled", `There is no answer. ${AGAIN}`],
  unreachable: ["The service can’t be reached", `Check the connection, or whether the service is running. ${AGAIN}`],
  unreadable: ["The file can’t be opened", "It was moved or changed since, or is a folder. Choose it again."],
  empty_body: ["The file is empty", "There is nothing in it to read. Choose another picture."],
  undecodable_image: ["This can’t be read as a picture", "The file is cut off, damaged or no picture. Save it as PNG or JPEG, or try another."],
  unsupported_dicom: ["This DICOM file is not one CT slice", "Export one slice of a CT series, or save it as PNG, and try that."],
  deadline_exceeded: ["It took too long", `The service gave up on this picture, most likely because it is busy. ${AGAIN}`],
  image_too_large: ["The picture is too large", "It has more pixels than any CT slice. Save it smaller."],
  unauthenticated: ["This service asks for a key", "Whoever runs the service gives keys out. Retry, and enter yours."],
  forbidden: ["Your key is not for this", "It is known here, but not for classifying pictures. Ask whoever runs the service for one that is, and open the page in a new tab."],
};

const STATUSES = {
  408: ["The picture came too slowly", `The connection may be poor. ${AGAIN}`],
  413: ["The file is too large", "Save it smaller, or as a JPEG."],
  429: ["The service is busy", `More pictures are coming in than it can read just now. ${AGAIN}`],
  503: ["The service is busy or starting", `It can’t take the picture just now. ${AGAIN}`],
};

/** Return the title of an ApiError and the advice that goes with it. */
export function errorWords({ code, status }) {
  if (ERRORS[code]) return ERRORS[code];
  if (STATUSES[status]) return STATUSES[status];
  if (status >= 500) return ["Something went wrong in the service", "The picture is not the cause. Retry. If it fails again, give whoever runs the service the request below."];
  return ["The service did not take this picture", "Try another, or read what it said below."];
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
  if (share > 0 && rounded < 0.0005) return `under ${percent(0.001)}`;
  return rounded < 0.9995 ? percent(rounded) : `over ${percent(0.999)}`;
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
  return items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} or ${items.at(-1)}`;
}

/** Return the heading of the probabilities. Without a label they mean nothing. */
export const meaningOf = ({ label }) => (label ? "Probabilities" : "Probabilities, meaningless for this picture");

/** Return the rules that object, and the warnings about the file, in the card's words. */
export const reasonsOf = ({ reasons }, model) => reasons.map((name) => model?.rules?.[name] ?? plain(name));
export const warningsOf = ({ warnings }, model) => warnings.map((name) => model?.warnings?.[name] ?? plain(name));

/** Return a queue item's outcome in a few words, with its tone (which also names its symbol). */
export function outcome(item, model) {
  const { state, prediction, error, due } = item;
  if (state === "busy") return { words: "Reading", tone: "busy" };
  if (state === "waiting") return { words: due ? "Waits for a retry" : "Waiting", tone: "busy" };
  if (state === "error") return { words: errorWords(error)[0], tone: "error" };
  const { title } = verdictOf(prediction);
  const label = prediction.label && titleOf(model, prediction.label);
  const referred = label && prediction.decision === "refer";
  return { words: referred ? `${title}: ${label}` : label || title, tone: prediction.decision };
}
