// Requests to the server that the page comes from, with an API key where it asks for one.

import { $ } from "./dom.js";

let key = sessionStorage.getItem("lynx_rt key") ?? "";
let asking = null; // a promise while the dialog is open
let refused = false; // the dialog was cancelled: it opens again by its button only

// Asks for a key. Resolves once there is one, rejects where the dialog is cancelled.
export function askForKey(message = "") {
  asking ??= new Promise((resolve, reject) => {
    $("key-error").textContent = message;
    $("key").value = "";
    $("key-dialog").onclose = () => {
      asking = null;
      refused = $("key-dialog").returnValue !== "use";
      $("key-dialog").returnValue = "";
      if (refused) return reject(new Error("This server asks for an API key."));
      key = $("key").value.trim();
      sessionStorage.setItem("lynx_rt key", key);
      resolve();
    };
    $("key-dialog").showModal();
  });
  return asking;
}

// Returns the answer to a GET, or to a POST of `body`. keepalive: also where the page is left meanwhile.
// Throws an Error whose message is for people.
export async function call(path, { body, signal, keepalive } = {}) {
  for (;;) {
    const used = key;
    const headers = used ? { Authorization: `Bearer ${used}` } : {};
    if (body) headers["Content-Type"] = "application/json";
    const options = { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, keepalive, cache: "no-store" };
    const answer = await fetch(path, options).catch((error) => {
      throw error.name === "AbortError" ? error : new Error("The server does not answer.");
    });
    if (answer.ok) return answer;
    const text = await answer.json().then((value) => value.error?.message, () => null) ?? `The server answered ${answer.status}.`;
    if (answer.status !== 401) throw new Error(text);
    if (used !== key) continue; // another call has got a new one meanwhile
    if (refused) throw new Error("This server asks for an API key: use the button “API key”.");
    await askForKey(used ? text : "");
  }
}

export const get = async (path) => (await call(path)).json();

// Yields the values of server-sent events up to [DONE]. A stream that ends without it is an error.
export async function* events(path, options) {
  const answer = await call(path, options);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  try {
    for (let rest = ""; ;) {
      const { value, done } = await reader.read();
      if (done) throw new Error("The connection ended before the answer did.");
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        if (line === "data: [DONE]") return;
        if (!line.startsWith("data: ")) continue;
        const event = JSON.parse(line.slice(6));
        if (event.error) throw new Error(event.error.message);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Answers a conversation: calls show(text, reasoning, progress) as it grows, and returns {text, reason, usage, lynx}.
export async function answer(messages, fields, signal, show) {
  const body = { messages, stream: true, stream_options: { include_usage: true }, return_progress: true, ...fields };
  if (!$("model").hidden) body.model = $("model").value;
  const result = { text: "", thought: "", reason: null, usage: null, lynx: null };
  for await (const chunk of events("v1/chat/completions", { body, signal })) {
    const choice = chunk.choices?.[0];
    result.text += choice?.delta?.content ?? "";
    result.thought += choice?.delta?.reasoning ?? "";
    result.reason = choice?.finish_reason ?? result.reason;
    result.usage = chunk.usage ?? result.usage;
    result.lynx = chunk.lynx ?? result.lynx;
    show(result, chunk.prompt_progress);
  }
  if (result.reason === "abort" || result.reason === "error") throw new Error("The server ended this answer.");
  return result;
}

export function startKeys() {
  $("key-button").addEventListener("click", () => {
    refused = false;
    askForKey().catch(() => {});
  });
  $("key-cancel").addEventListener("click", () => $("key-dialog").close());
}
