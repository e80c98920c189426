/** The request for the picture on screen, as curl and as Python. */

import { contentType, PREDICT } from "./api.js";

const byId = (id) => document.getElementById(id);

export function drawRequests(file) {
  const name = file?.name ?? "slice.png";
  const type = file ? contentType(file) : "image/png";
  byId("api-subject").textContent = name;
  byId("curl").textContent = `curl --data-binary @${quoted(name)} \\\n  -H ${quoted(`Content-Type: ${type}`)} \\\n  ${quoted(PREDICT.href)}`;
  byId("python").textContent = `import json
from pathlib import Path
from urllib.request import Request, urlopen

request = Request(
    ${JSON.stringify(PREDICT.href)},
    data=Path(${JSON.stringify(name)}).read_bytes(),
    headers={"Content-Type": ${JSON.stringify(type)}},
)
answer = json.load(urlopen(request))
print(answer["decision"], answer["label"], answer["confidence"])`;
}

/** A word for a POSIX shell. */
const quoted = (word) => (/^[\w./:-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`);

for (const button of document.querySelectorAll("[data-copy]")) {
  button.hidden = !navigator.clipboard;
  button.setAttribute("aria-label", `Copy ${button.dataset.copy}`);
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(byId(button.dataset.copy).textContent);
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
}
