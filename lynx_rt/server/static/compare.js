// Policies: the one for all requests, and two side by side.

import { crowdSize, setCrowd } from "./crowd.js";
import { $, make, number, percent, policyName, sleep } from "./dom.js";
import { live } from "./live.js";
import { answer, call, get } from "./server.js";

const KNOWN = ["topk", "lynx", "cover", "oea:k0=2", "xshare", "des_vote", "top1"];
const MIN_SECONDS = 3; // of a side with a crowd, so that its means are of many steps
let running = null; // the AbortController of a comparison
let before = null; // the policy to go back to, while a comparison has another one set

const setPolicy = (policy) => call("v1/lynx/selection", { body: { expert_selection: policy }, keepalive: true });

// Shows which policies there are to choose from, by live.state.
export function offerPolicies() {
  const { policy, can_set_selection: canSet } = live.state;
  $("policy-text").disabled = $("policy-set").disabled = !canSet;
  $("policy-now").textContent = policy;
  $("policy-hint").textContent = canSet
    ? "It holds from the next step on, for the requests of everybody."
    : "Only a server with API keys lets clients change it; this one has what --selection said.";
  if (before !== null) return; // a comparison goes through its policies
  $("policies").replaceChildren(...KNOWN.map((name) => new Option(name)));
  const others = KNOWN.filter((name) => name !== policyName(policy));
  const choices = canSet
    ? [[`${policyName(policy)}, as now`, policy], ...others.map((name) => [name, name])]
    : [["the model’s own routing (exact)", "exact"], [`the server’s policy: ${policyName(policy)}`, "server"]];
  const right = !canSet ? "server" : policy === "topk" ? "lynx" : policy;
  for (const [id, first] of [["policy-a", canSet ? "topk" : "exact"], ["policy-b", right]]) {
    const kept = choices.some(([, value]) => value === $(id).value) ? $(id).value : first;
    $(id).replaceChildren(...choices.map(([text, value]) => new Option(text, value, false, value === kept)));
  }
  const what = "One prompt, answered under two policies, one after the other, each beside a crowd of the same requests.";
  const meanwhile = "Meanwhile the policy changes for everybody; then it is set back.";
  const alike = "This server keeps the model’s own routing, so both sides are alike: start it with --selection lynx, or with --api-key.";
  $("compare-hint").textContent = `${what} ${canSet ? meanwhile : policy === "topk" ? alike : ""}`;
}

// Answers the prompt under one policy. Returns {title, text, numbers}, whose numbers are of all that ran meanwhile.
async function measure(side, prompt, signal) {
  const select = $(`policy-${side}`), size = Number($("compare-crowd").value);
  const title = select.selectedOptions[0].text, fields = select.value === "exact" ? { expert_selection: "exact" } : {};
  const say = (text) => ($("compare-progress").textContent = `${side.toUpperCase()}: ${text}`);
  $(`title-${side}`).textContent = `${side.toUpperCase()}: ${title}`;
  if (live.state.can_set_selection) await setPolicy(select.value);
  say("the crowd gathers");
  setCrowd(size, fields);
  for (let seen = 0; seen < size; await sleep(50)) {
    signal.throwIfAborted();
    if (crowdSize() === 0) throw new Error("the crowd has stopped");
    seen = (await get("v1/lynx/state")).num_sequences;
  }
  say("answering");
  const start = performance.now(), first = await get("v1/lynx/state");
  const options = { temperature: 0, seed: 1, max_tokens: Number($("compare-tokens").value), ...fields };
  const result = await answer([{ role: "user", content: prompt }], options, signal, ({ text }) => ($(`answer-${side}`).textContent = text));
  for (say("counting steps"); size > 0 && performance.now() - start < 1000 * MIN_SECONDS; await sleep(50)) signal.throwIfAborted();
  const last = await get("v1/lynx/state"), seconds = (performance.now() - start) / 1000;
  setCrowd(0);
  while ((await get("v1/lynx/state")).num_sequences > 0 && !signal.aborted) await sleep(50);
  return { text: result.text, numbers: numbersOf(first, last, seconds, result) };
}

// Returns [what, value] of what happened between two answers of /v1/lynx/state, whose means are since the server's start.
function numbersOf(first, last, seconds, result) {
  const grown = (name) => last[name] - first[name];
  const mean = (name, by) => (last[name] * last[by] - first[name] * first[by]) / grown(by);
  const pace = result.usage?.completion_tokens >= 16 ? result.lynx?.tokens_per_second : NaN;
  const read = mean("experts_read", "decode_steps"), union = mean("experts_union_before", "decode_steps");
  return [
    ["Experts read, per decode step and layer", number(read, 2)],
    ["… by the model’s own routing of the same rows", number(union, 2)],
    ["Fewer", percent(1 - read / union, 1)],
    ["Gate mass kept", percent(mean("retained_mass", "decode_rows"), 1)],
    ["Rows per decode step", number(grown("decode_rows") / grown("decode_steps"))],
    ["Memory read, GB per second of steps", number(grown("bytes_read") / grown("step_seconds") / 1e9)],
    ["Tokens per second, all requests", number(grown("generation_tokens") / seconds, 0)],
    ["Tokens per second, this answer (of 16 tokens and more)", number(pace)],
    ["Decode steps that these are of", String(grown("decode_steps"))],
  ];
}

// Marks what two answers do not have in common.
function showDifference(a, b) {
  let same = 0;
  while (same < Math.min(a.length, b.length) && a[same] === b[same]) ++same;
  for (const [side, text] of [["a", a], ["b", b]])
    $(`answer-${side}`).replaceChildren(text.slice(0, same), ...(a === b ? [] : [make("mark", { textContent: text.slice(same) })]));
  $("compare-difference").textContent = a === b
    ? "Both answers are the same, to the last character."
    : `The answers differ from character ${same + 1} on (marked). Both are greedy; under a policy the requests beside them count too.`;
}

function showNumbers(a, b) {
  const cell = (textContent) => make("td", { textContent });
  const header = (textContent, scope) => make("th", { textContent, scope });
  const rows = a.map(([what, value], i) => make("tr", {}, header(what, "row"), cell(value), cell(b[i][1])));
  const head = make("tr", {}, header("", "col"), header("A", "col"), header("B", "col"));
  const caption = make("caption", { textContent: "While each side ran, over all requests" });
  $("compare-numbers").replaceChildren(make("table", {}, caption, make("thead", {}, head), make("tbody", {}, ...rows)));
}

async function compare() {
  running = new AbortController();
  const crowd = crowdSize(), prompt = $("compare-prompt").value;
  $("compare-run").disabled = true;
  $("compare-stop").disabled = false;
  $("compare-progress").classList.remove("error");
  $("compare-answers").hidden = false;
  $("compare-difference").textContent = "";
  $("compare-numbers").replaceChildren();
  for (const side of ["a", "b"]) $(`answer-${side}`).textContent = "";
  before = live.state.policy;
  try {
    const a = await measure("a", prompt, running.signal), b = await measure("b", prompt, running.signal);
    showDifference(a.text, b.text);
    showNumbers(a.numbers, b.numbers);
    $("compare-progress").textContent = "done";
  } catch (error) {
    const stopped = error.name === "AbortError";
    $("compare-progress").textContent = stopped ? "stopped" : error.message;
    $("compare-progress").classList.toggle("error", !stopped);
  } finally {
    if (live.state.can_set_selection) await setPolicy(before).catch(() => {});
    before = null;
    setCrowd(crowd);
    running = null;
    $("compare-run").disabled = false;
    $("compare-stop").disabled = true;
  }
}

export function startCompare() {
  $("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (!running && live.state) compare();
  });
  $("compare-stop").addEventListener("click", () => running?.abort());
  $("compare").addEventListener("keydown", (event) => event.key === "Escape" && running?.abort());
  $("policy-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      live.state.policy = (await (await setPolicy($("policy-text").value.trim())).json()).policy;
      $("policy-text").value = "";
      offerPolicies();
    } catch (error) {
      $("policy-hint").textContent = error.message;
    }
  });
  window.addEventListener("pagehide", () => before !== null && live.state.can_set_selection && setPolicy(before).catch(() => {}));
}
