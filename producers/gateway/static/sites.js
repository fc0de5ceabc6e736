// The sites: small machines that answer by themselves and send on what they are unsure of. Each tells every minute.

import { get, now } from "./api.js";
import { cell, el, say, tableOf } from "./dom.js";
import { ago, count, share } from "./words.js";

const SHOWN_AGAIN_S = 10;
const NAMES = ["Site", "Models", "Last seen", "Waiting", "Sent on", "Agreement"];

/** The section of the sites, hidden if there is none; it asks again every ten seconds. */
export function siteTable(signal) {
  const table = tableOf("Sites", NAMES, (site) => `${site.tenant}/${site.site}`, row, "");
  table.node.hidden = true;
  let askedAt = -Infinity;
  return {
    node: table.node,
    async look() {
      if (performance.now() / 1000 - askedAt < SHOWN_AGAIN_S) return;
      askedAt = performance.now() / 1000;
      const sites = await told(signal);
      table.node.hidden = sites.length === 0;
      table.show(sites, "as they told last");
    },
  };
}

/** The sites; none while the broker cannot be reached, as the list of workers says. */
async function told(signal) {
  try {
    return (await get("/api/sites", { signal })).sites;
  } catch {
    return [];
  }
}

function row() {
  const cells = NAMES.map((name, place) => cell(name, { class: place < 2 ? "wraps" : "numbers" }));
  return {
    node: el("tr", {}, cells),
    update(site) {
      const name = site.tenant ? `${site.site} (${site.tenant})` : site.site;
      const models = Object.entries(site.models).map(([model, revision]) => `${model}: ${revision}`).join("; ");
      const seen = `${ago(site.at, now())}${site.away ? ", away" : ""}`;
      const values = [name, models, seen, count(site.waiting), part(site.share_sent), part(site.agreement)];
      values.forEach((value, place) => say(cells[place], value));
      cells[2].classList.toggle("bad", site.away);
    },
  };
}

function part(value) {
  return value === null ? "–" : share(value);
}
