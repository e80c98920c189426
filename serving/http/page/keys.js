/** The API key, where the service wants one: asked for once and kept in this tab's session, nowhere else. */

import { byId } from "./words.js";

const NAME = "chestct.key";

const dialog = byId("key-dialog");
const input = byId("key");
const wrong = byId("key-wrong");

let asking = null;
let declined = false;

let key = session((storage) => storage.getItem(NAME));

export const storedKey = () => key;

/** The browser may refuse to store anything: then the key lasts until the page is left. */
function session(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

/** After a person acts anew the key may be asked for again. */
export function allowAsking() {
  declined = false;
}

/** The key `used` was refused: whether there is another one now. However many requests ask, a person is asked once. */
export async function askForKey(used) {
  if (storedKey() !== used) return true;
  if (declined) return false;
  asking ??= open(Boolean(used)).finally(() => (asking = null));
  return asking;
}

function open(refused) {
  key = null;
  session((storage) => storage.removeItem(NAME));
  wrong.hidden = !refused;
  input.value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => {
      key = (dialog.returnValue === "use" && input.value.trim()) || null;
      input.value = dialog.returnValue = "";
      declined = !key;
      if (key) session((storage) => storage.setItem(NAME, key));
      resolve(Boolean(key));
    };
  });
}

dialog.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault(); // the page's policy lets no form be sent
  dialog.close("use");
});
byId("key-cancel").addEventListener("click", () => dialog.close(""));
