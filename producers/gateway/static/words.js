// Numbers and times for people.

const whole = new Intl.NumberFormat("en");
const short = new Intl.NumberFormat("en", { notation: "compact", maximumFractionDigits: 1 });

export const count = (value) => whole.format(value);

export const brief = (value) => (value < 10_000 ? whole.format(Math.round(value * 10) / 10) : short.format(value));

export const share = (value) => `${(100 * value).toFixed(value >= 0.0005 && value < 0.0995 ? 1 : 0)}%`;

/** Characters without a sign of their own, but for tab and line end, and those that turn the direction of writing. */
const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]/g;

/** A text of strangers with such characters as escapes, as `argosy` shows them in a terminal. */
export const visible = (text) => text.replace(hidden, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`);

/** A duration in its two largest units. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.max(0, Math.round(seconds * 1000))} ms`;
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const units = [["d", 86_400], ["h", 3600], ["min", 60], ["s", 1]];
  let rest = Math.round(seconds);
  const parts = [];
  for (const [name, size] of units) {
    if (rest >= size || parts.length) parts.push(`${Math.floor(rest / size)} ${name}`);
    rest %= size;
  }
  return parts.slice(0, 2).filter((part, place) => !place || !part.startsWith("0 ")).join(" ");
}

export function ago(at, now) {
  const seconds = Math.floor(now - at);
  if (seconds < 1) return "just now";
  return seconds < 10 ? `${seconds} s ago` : `${duration(seconds)} ago`;
}

export const moment = (at) => new Date(at * 1000).toLocaleString();

export const bytes = (size) => (size < 1024 ? `${size} B` : size < 2 ** 20 ? `${(size / 1024).toFixed(0)} KB` : `${(size / 2 ** 20).toFixed(1)} MB`);

/** A message of the API as a sentence. */
export const sentence = (text) => text && `${text[0].toUpperCase()}${text.slice(1)}.`;

export const plural = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;
