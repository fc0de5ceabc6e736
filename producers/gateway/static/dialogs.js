// Dialogs and messages: dialogs close with Escape and return the focus, screen readers read messages out.

import { say } from "./dom.js";
import { Refusal } from "./api.js";

const by = (id) => document.getElementById(id);

let fading = 0;

/** Show a message for a while; screen readers read it out. */
export function report(text, wrong = false) {
  const toast = by("toast");
  toast.dataset.wrong = wrong;
  say(toast, text);
  clearTimeout(fading);
  fading = setTimeout(() => (toast.textContent = ""), 8000);
}

/** Announce a text to screen readers only. */
export const announce = (text) => say(by("announced"), text);

/** Ask for confirmation; resolves to true or false. */
export function sure(title, text, yes, dangerous = false) {
  const dialog = by("sure");
  say(by("sure-title"), title);
  say(by("sure-text"), text);
  const button = by("sure-yes");
  say(button, yes);
  button.className = dangerous ? "danger" : "primary";
  return new Promise((answered) => {
    let agreed = false;
    button.onclick = () => {
      agreed = true;
      dialog.close();
    };
    by("sure-no").onclick = () => dialog.close();
    dialog.addEventListener("close", () => answered(agreed), { once: true });
    dialog.showModal();
    (dangerous ? by("sure-no") : button).focus();
  });
}

/** Run a button's work with the button disabled; report a refusal. */
export async function doing(button, work) {
  if (button.getAttribute("aria-disabled") === "true") return; // a button with `disabled` would lose the focus
  button.setAttribute("aria-disabled", "true");
  try {
    await work();
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    report(error.message, true);
  } finally {
    button.removeAttribute("aria-disabled");
  }
}
