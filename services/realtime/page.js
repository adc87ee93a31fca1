"use strict";
// The protocol: docs/realtime.md. Whatever comes is shown as text, never as markup.
const shown = (id) => document.getElementById(id);
const say = (text) => { shown("state").textContent = text; };
const FINAL = new Set([4401, 4403]); // another token is needed first
const STATUS_MS = 3000;
let socket = null, version = 0, pause = 500, timer = 0, asking = 0;

function show(event) {
  const after = event.data.after;
  shown("status").textContent = after.status;
  shown("payment").textContent = after.payment_status;
  shown("total").textContent = `${after.total_amount} ${after.currency} (minor units)`;
  const row = shown("timeline").insertRow();
  for (const text of [event.version, event.type, event.occurred_at, event.actor, after.status])
    row.insertCell().textContent = text;
}

function connect(order, token) {
  const url = new URL("v1/stream", location.href);
  url.protocol = url.protocol.replace("http", "ws");
  url.hash = "";
  const own = socket = new WebSocket(url, ["orders.v1", "bearer." + token]);
  own.onopen = () => own.send(JSON.stringify({ subscribe: { order_id: order, after_version: version } }));
  own.onmessage = ({ data }) => {
    if (own !== socket) return;
    const message = JSON.parse(data);
    if (message.error) say(`Refused: ${message.error.code}. ${message.error.detail}`);
    else if (message.subscribed) { pause = 500; say("Live."); }
    else if (message.version) { version = message.version; show(message); }
  };
  own.onclose = ({ code, reason }) => {
    if (own !== socket) return;
    if (FINAL.has(code)) return say(`Closed (${code}): ${reason}`);
    say(`Connection lost (${code}); trying again.`);
    timer = setTimeout(() => connect(order, token), pause);
    pause = Math.min(pause * 2, 10000);
  };
}

function tell(parts) {
  const rows = [];
  for (const part of parts) {
    const name = part.process ?? part.at;
    if (!part.answers) rows.push([name, "metrics", "does not answer"]);
    for (const { outbox, depth, oldest_age_seconds, parked_aggregates } of part.outboxes)
      rows.push([name, `outbox ${outbox}`, `${depth} waiting, oldest ${oldest_age_seconds} s, ${parked_aggregates} parked`]);
    for (const { breaker, state } of part.breakers) rows.push([name, `breaker ${breaker}`, state.replace("_", "-")]);
  }
  shown("parts").replaceChildren();
  for (const texts of rows) {
    const row = shown("parts").insertRow();
    for (const text of texts) row.insertCell().textContent = text;
  }
}

async function ask(token, turn) {
  let said;
  try {
    const answer = await fetch("v1/status", { headers: { Authorization: "Bearer " + token } });
    const content = await answer.json();
    if (turn !== asking) return;
    if (!answer.ok) said = `Refused: ${content.code}. ${content.detail}`;
    else if (!content.parts.length) said = "Not configured: ORDERS_METRICS_URLS of realtime-gateway names no process.";
    else said = `As of ${content.as_of}.`;
    tell(answer.ok ? content.parts : []);
    if (answer.status === 401 || answer.status === 403) turn = 0; // another token is needed first
  } catch {
    said = "The gateway does not answer.";
  }
  if (turn && turn !== asking) return;
  shown("behind").textContent = said;
  if (turn) setTimeout(() => turn === asking && ask(token, turn), STATUS_MS);
}

function follow() {
  clearTimeout(timer);
  const former = socket;
  socket = null; // so that its end is nobody's business
  if (former) former.close();
  version = 0;
  shown("timeline").replaceChildren();
  for (const id of ["status", "payment", "total"]) shown(id).textContent = "-";
  say("Connecting.");
  connect(shown("order").value.trim().toUpperCase(), shown("token").value.trim());
  ask(shown("token").value.trim(), ++asking);
}

shown("form").onsubmit = (event) => { event.preventDefault(); follow(); };
// After `#`, which is not sent to any server: /#order=01JD...&token=eyJ...
const given = new URLSearchParams(location.hash.slice(1));
if (given.has("token")) history.replaceState(null, "", location.pathname); // neither kept in the history
shown("order").value = given.get("order") ?? "";
shown("token").value = given.get("token") ?? "";
if (given.get("order") && given.get("token")) follow();
