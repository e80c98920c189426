/** Offers sample pictures: drawn ones, and those of a folder that the operator of the service may name. */

import { readSample } from "./api.js";
import { byId, element } from "./elements.js";
import { allowAsking } from "./keys.js";
import { TEXT } from "./text.js";
import { errorWords, outcome, plain } from "./words.js";

/** By sample: the small text of its button. */
const said = new Map();

/** Offer `samples`. `take` is called with the chosen one in a list of Files, and whether it is drawn. Returns its item. */
export function offerSamples(samples, take) {
  byId("samples").hidden = !samples.length;
  byId("sample-list").replaceChildren(...samples.map((sample) => element("li", {}, button(sample, take))));
}

function button(sample, take) {
  const picture = sample.synthetic ? [element("img", { src: sample.url, alt: "", width: 56, height: 42, loading: "lazy" })] : [];
  const plainName = sample.name.replace(/\.\w+$/, "");
  const name = (sample.synthetic && TEXT.drawings[plainName]) || plain(plainName);
  const small = element("small", {}, sample.synthetic ? TEXT.synthetic : TEXT.ownFolder);
  const made = element("button", { type: "button" }, ...picture, element("span", {}, name, small));
  made.addEventListener("click", async (event) => {
    if (event.detail > 1) return; // the second of a double click
    allowAsking();
    byId("sample-error").hidden = true;
    try {
      const [item] = await take([await readSample(sample)], sample.synthetic);
      said.set(item, small);
    } catch (error) {
      byId("sample-error").textContent = `${name}: ${errorWords(error).join(". ")}`;
      byId("sample-error").hidden = false;
    }
  });
  return made;
}

/** Once a sample is answered, its button says what the loaded model said of it. */
export function drawSample(item, model) {
  const small = said.get(item);
  if (item?.prediction && small) small.textContent = `${item.synthetic ? TEXT.synthetic : TEXT.ownFolder}. ${outcome(item, model).words}`;
}
