// The server's steps in numbers, as long as the page is looked at.

import { $, colour, fill, number, percent, policyName, sleep, surface } from "./dom.js";
import { offerPictures } from "./pictures.js";
import { get, events } from "./server.js";

export const live = { state: null }; // the last answer of /v1/lynx/state, with the current policy
const SECONDS = 60; // that the line shows
const history = []; // {time, policy, read, union} of each event; null where there was no decode step

function status(text, kind = "") {
  $("status").textContent = text;
  $("status").className = kind;
}

const shown = () => document.hidden && new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));

// Follows the server for as long as the page is looked at; begins again where the connection is lost.
// onState(): live.state is new.  onEvent(event): half a second is over.
export async function watch(onState, onEvent) {
  for (;; await sleep(1000)) {
    while (document.hidden) await shown();
    try {
      const ready = await fetch("ready", { cache: "no-store" });
      if (!ready.ok) {
        const { phase, done } = await ready.json();
        status(phase === "loading" ? `loading, ${percent(done)}` : phase);
        continue;
      }
      await begin();
      onState();
      const hidden = new AbortController();
      document.addEventListener("visibilitychange", () => hidden.abort(), { once: true });
      for await (const event of events("v1/lynx/events", { signal: hidden.signal })) {
        if (event.policy !== live.state.policy) {
          live.state.policy = event.policy;
          onState();
        }
        show(event);
        onEvent(event);
      }
    } catch (error) {
      if (error.name !== "AbortError") status(error instanceof TypeError ? "no connection" : error.message, "failed");
    }
  }
}

async function begin() {
  const [models, state] = await Promise.all([get("v1/models"), get("v1/lynx/state")]);
  live.state = state;
  const names = models.data.map((model) => model.id);
  offerPictures(models.data.some((model) => model.input_modalities?.includes("image")));
  if ($("model").options.length !== names.length) $("model").replaceChildren(...names.map((name) => new Option(name)));
  $("model").hidden = names.length < 2;
  $("model-name").textContent = names.length < 2 ? names[0] : "";
  status(`ready, ${state.device}`, "ready");
  $("legend-all").textContent = state.num_experts;
  $("machine").textContent = state.memory_bandwidth
    ? `of ${number(state.memory_bandwidth / 1e9)} GB/s that this machine reads`
    : state.device.startsWith("cpu")
      ? "not compared with the machine’s rate: so small a model stays in its caches"
      : "not compared: only a CPU’s rate is measured";
}

function show(event) {
  const all = live.state.num_experts, { experts_read: read, experts_union_before: union } = event, decoded = event.decode_steps > 0;
  $("policy").textContent = policyName(event.policy);
  $("policy").title = event.policy;
  $("running").textContent = event.num_waiting ? `${event.num_running}, ${event.num_waiting} wait` : event.num_running;
  history.push({ time: performance.now(), policy: event.policy, read: decoded ? read : null, union: decoded ? union : null });
  while (history[0].time < performance.now() - 1000 * SECONDS) history.shift();
  drawLine();
  for (const id of ["read", "gbs", "rows", "mass", "rate"]) $(id).classList.toggle("stale", !decoded);
  if (!decoded) return;
  const saved = 1 - read / union;
  $("read").textContent = number(read);
  $("saved").textContent = `of ${all}; ${saved < 0.0005 ? "as many as" : `${percent(saved)} fewer than`} by the model’s own routing`;
  $("legend-read").textContent = number(read);
  $("legend-union").textContent = number(union);
  fill("gauge-read", read / all);
  fill("gauge-union", union / all);
  const others = `${number(union)} by the model’s own routing, ${all} in all`;
  $("gauge").ariaLabel = `${number(read)} experts read per decode step and layer, ${others}`;
  $("rows").textContent = number(event.decode_rows / event.decode_steps);
  $("mass").textContent = percent(event.retained_mass, 1);
  $("rate").textContent = number(event.generation_tokens / event.seconds, 0);
  const bytes = event.bytes_read / event.step_seconds, most = live.state.memory_bandwidth;
  $("gbs").textContent = `${number(bytes / 1e9)} GB/s`;
  $("bandwidth").hidden = !most;
  if (most) {
    fill("bandwidth-used", bytes / most);
    $("bandwidth").ariaLabel = `${percent(bytes / most)} of the machine’s rate`;
  }
}

export function drawLine() {
  if (!live.state) return;
  const { context: c, width, height } = surface($("line"));
  const all = live.state.num_experts, left = 26, bottom = height - 16, now = performance.now();
  const x = (time) => width - ((now - time) / (1000 * SECONDS)) * (width - left), y = (value) => bottom - (value / all) * (bottom - 6);
  c.fillStyle = colour("muted");
  c.strokeStyle = colour("line");
  for (const value of [0, all / 2, all]) {
    c.fillText(value, 0, y(value) + 4);
    c.strokeRect(left, Math.round(y(value)) + 0.5, width - left, 0);
  }
  c.fillText(`${SECONDS} s ago`, left, height - 2);
  c.fillText("now", width - 22, height - 2);
  for (const [name, dash] of [["union", [4, 3]], ["read", []]]) {
    c.strokeStyle = colour(name === "read" ? "accent" : "union");
    c.lineWidth = 2;
    c.setLineDash(dash);
    c.beginPath();
    let open = false;
    for (const point of history) {
      if (point[name] !== null) c[open ? "lineTo" : "moveTo"](x(point.time), y(point[name]));
      open = point[name] !== null;
    }
    c.stroke();
  }
  c.setLineDash([]);
  c.strokeStyle = colour("text");
  c.lineWidth = 1;
  for (const [i, point] of history.entries()) // where the policy has changed
    if (i && point.policy !== history[i - 1].policy) c.strokeRect(x(point.time), 4, 0, bottom - 4);
}
