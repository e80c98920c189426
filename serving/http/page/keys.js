/** Asks for the API key once, if the service requires one. The key is kept in this tab's session only. */

import { byId } from "./elements.js";

const NAME = "chestct.key";

const dialog = byId("key-dialog");
const input = byId("key");
const wrong = byId("key-wrong");

let asking = null;
let declined = false;

let key = session((storage) => storage.getItem(NAME));

export const storedKey = () => key;

/** Use the session's storage. If the browser blocks it, the key lasts until the page is left. */
function session(use) {
  try {
    return use(sessionStorage);
  } catch {
    return null;
  }
}

/** Allow the dialog again, because the user has acted. */
export function allowAsking() {
  declined = false;
}

/** The service refused the key `used`: return whether there is another one now. Concurrent requests share one dialog. */
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
  event.preventDefault(); // the page's content policy forbids sending forms
  dialog.close("use");
});
byId("key-cancel").addEventListener("click", () => dialog.close(""));
