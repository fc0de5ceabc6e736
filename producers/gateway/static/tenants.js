// The tenants with their shares and limits, and the keys. Operators set tenants, make keys and remove them.

import { get, may, now, poll, post, remove } from "./api.js";
import { doing, report, sure } from "./dialogs.js";
import { call, cell, el, say, tableOf } from "./dom.js";
import { ago, brief, count, moment } from "./words.js";

const EVERY_S = 5;
const ROLES = ["member", "viewer", "operator"];

export function tenants(root, { signal }) {
  const parts = [tenantTable(), keyTable()];
  root.append(el("h1", { tabindex: -1, class: "unseen" }, "Tenants and keys"), ...parts.map((part) => part.node));
  poll(() => Promise.all(parts.map((part) => part.look(signal))), EVERY_S, signal);
}

const field = (name, attributes = {}) => el("input", { "aria-label": name, placeholder: name, spellcheck: false, autocomplete: "off", ...attributes });

/** A form in a line; `act` runs with its button disabled. */
function lineOf(allowed, fields, text, act) {
  const button = el("button", { type: "submit" }, text);
  const submit = (event) => {
    event.preventDefault();
    doing(button, act);
  };
  return el("form", { class: "line-form", hidden: !allowed, submit }, fields, button);
}

function tenantTable() {
  const names = ["Tenant", "Weight", "Items a second", "In flight", "Most in flight"];
  const table = tableOf("Tenants", names, (one) => one.name, () => {
    const cells = names.map((name, place) => cell(name, { class: place ? "numbers" : "wraps" }));
    const update = (one) => [one.name || "''", brief(one.weight), limit(one.max_items_per_s), count(one.in_flight), limit(one.max_in_flight)].forEach((value, place) => say(cells[place], value));
    return { node: el("tr", {}, cells), update };
  }, "No tenant yet.");
  const number = (name) => field(name, { type: "number", min: 0, step: "any" });
  const fields = { name: field("Tenant"), weight: number("Weight"), max_items_per_s: number("Items a second (0: no limit)"), max_in_flight: number("Most in flight (0: no limit)") };
  const form = lineOf(may.operate, Object.values(fields), "Set", async () => {
    const body = { name: fields.name.value.trim() };
    for (const name of ["weight", "max_items_per_s", "max_in_flight"]) if (fields[name].value) body[name] = Number(fields[name].value);
    table.show((await post("/api/tenants", body)).tenants, "");
    report(`tenant ${body.name || "''"} is set`);
    form.reset();
  });
  table.node.append(form);
  return { node: table.node, look: async (signal) => table.show((await get("/api/tenants", { signal })).tenants, "") };
}

const limit = (value) => (value === null ? "no limit" : brief(value));

function keyTable() {
  const names = ["Key", "Tenant", "Role", "Made", "Expires", ...(may.keys ? ["Action"] : [])];
  const show = (keys) => table.show(keys, "");
  const table = tableOf("Keys", names, (key) => key.id, (key) => keyRow(key, show), "No key yet.");
  const name = field("Name", { required: true });
  const tenant = field("Tenant (empty: all tenants)");
  const role = el("select", { "aria-label": "Role" }, ROLES.map((one) => el("option", { value: one }, one)));
  const days = field("Expires after days", { type: "number", min: 1 });
  const made = el("p", { class: "whole", role: "status", hidden: true });
  const form = lineOf(may.keys, [name, tenant, role, days], "Make key", async () => {
    const owner = tenant.value.trim();
    const body = { name: name.value, role: role.value, tenant: owner || null, all_tenants: !owner && role.value !== "member", expires_s: days.value ? 86400 * Number(days.value) : null };
    const { key } = await post("/api/keys", body);
    made.hidden = false;
    made.replaceChildren(`The key ${name.value}, shown only now: `, el("code", {}, key));
    form.reset();
    show((await get("/api/keys")).keys);
  });
  table.node.append(form, made);
  return { node: table.node, look: async (signal) => show((await get("/api/keys", { signal })).keys) };
}

function keyRow(key, show) {
  const button = el("button", { type: "button", class: "small", click: () => doing(button, revoke) }, "Remove");
  call(button, `Remove key ${key.name}`);
  async function revoke() {
    if (!(await sure(`Remove the key ${key.name}?`, "Gateways refuse it within ten seconds. Its tenant's jobs stay.", "Remove", true))) return;
    show((await remove(`/api/keys/${encodeURIComponent(key.id)}`)).keys);
    report(`key ${key.name} is removed`);
  }
  const expires = key.expires_at === null ? "never" : moment(key.expires_at);
  const tenant = key.all_tenants ? "all tenants" : key.tenant || "''";
  return {
    node: el(
      "tr",
      {},
      cell("Key", { class: "wraps" }, key.name),
      cell("Tenant", { class: "wraps" }, tenant),
      cell("Role", {}, key.role),
      cell("Made", { class: "when", title: moment(key.created_at) }, ago(key.created_at, now())),
      cell("Expires", { class: "when" }, expires),
      may.keys && cell("Action", {}, button),
    ),
  };
}
