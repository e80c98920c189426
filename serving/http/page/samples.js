/** Offers sample pictures: drawn ones, and those of a folder that the operator of the service may name. */

import { readSample } from "./api.js";
import { byId, element } from "./elements.js";
import { allowAsking } from "./keys.js";
import { errorWords, plain } from "./words.js";

/** Offer `samples`. `take` is called with the chosen one in a list of Files, and whether it is drawn. */
export function offerSamples(samples, take) {
  byId("samples").hidden = !samples.length;
  byId("sample-list").replaceChildren(...samples.map((sample) => element("li", {}, button(sample, take))));
}

function button(sample, take) {
  const picture = sample.synthetic ? [element("img", { src: sample.url, alt: "", width: 56, height: 42, loading: "lazy" })] : [];
  const name = plain(sample.name.replace(/\.\w+$/, ""));
  const made = element("button", { type: "button" }, ...picture, element("span", {}, name, element("small", {}, sample.synthetic ? "Synthetic" : "From this service’s folder")));
  made.addEventListener("click", async (event) => {
    if (event.detail > 1) return; // the second of a double click
    allowAsking();
    byId("sample-error").hidden = true;
    try {
      take([await readSample(sample)], sample.synthetic);
    } catch (error) {
      byId("sample-error").textContent = `${name}: ${errorWords(error).join(". ")}`;
      byId("sample-error").hidden = false;
    }
  });
  return made;
}
