// What asks back and what reports: dialogs close with Escape and give the focus back, messages are read out.

import { say } from "./dom.js";
import { Refusal } from "./api.js";

const by = (id) => document.getElementById(id);

let fading = 0;

/** Show a message for a while, and have it read out. */
export function report(text, wrong = false) {
  const toast = by("toast");
  toast.dataset.wrong = wrong;
  toast.textContent = text;
  clearTimeout(fading);
  fading = setTimeout(() => (toast.textContent = ""), 8000);
}

/** Have something read out that is seen anyway. */
export const announce = (text) => say(by("announced"), text);

/** Ask whether to go on; resolves to true or false. */
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

/** Do what a button is for, the button waiting meanwhile; a refusal is reported. */
export async function doing(button, work) {
  if (button.getAttribute("aria-disabled") === "true") return; // disabled in earnest, it would lose the focus
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
