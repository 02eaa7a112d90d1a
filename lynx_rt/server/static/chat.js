// The chat. Text becomes paragraphs, lists, `code`, ``` blocks and **bold**, and never HTML or a link.

import { $, make, number, percent, policyName } from "./dom.js";
import { pictureOf, returnPictures, takePictures } from "./pictures.js";
import { answer } from "./server.js";

function inline(text) {
  return text.split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/).map((part, i) => {
    if (i % 2 === 0) return part;
    return part[0] === "`" ? make("code", { textContent: part.slice(1, -1) }) : make("strong", { textContent: part.slice(2, -2) });
  });
}

// Returns the nodes of a text.
export function formatted(text) {
  const blocks = [];
  for (const [i, part] of text.split(/^```[^\n]*\n?/m).entries()) {
    if (i % 2 === 1) {
      blocks.push(make("pre", {}, make("code", { textContent: part.replace(/\n$/, "") })));
      continue;
    }
    for (const paragraph of part.split(/\n{2,}/)) {
      const lines = paragraph.trim().split("\n");
      if (!paragraph.trim()) continue;
      if (lines.every((line) => /^[-*] /.test(line)))
        blocks.push(make("ul", {}, ...lines.map((line) => make("li", {}, ...inline(line.slice(2))))));
      else blocks.push(make("p", {}, ...inline(paragraph.trim().replace(/^#{1,6} (.*)$/gm, "**$1**"))));
    }
  }
  return blocks;
}

const conversation = []; // {role, content}; content is a text, or a list of images and a text
let answering = null; // the AbortController of the answer in progress

function samplingFields() {
  const fields = {};
  for (const name of ["temperature", "top_p", "top_k", "max_tokens", "seed"])
    if ($(name).value !== "") fields[name] = Number($(name).value);
  if ($("exact").checked) fields.expert_selection = "exact";
  return fields;
}

function about({ usage, lynx, reason }) {
  const parts = [`${usage?.completion_tokens ?? 0} tokens`];
  if (lynx?.tokens_per_second) parts.push(`${number(lynx.tokens_per_second)} tokens/s`);
  if (lynx?.time_to_first_token_ms) parts.push(`first after ${number(lynx.time_to_first_token_ms, 0)} ms`);
  if (lynx) parts.push(lynx.exact ? "the model’s own routing" : `${policyName(lynx.policy)} acted on ${lynx.selected_rows} rows`);
  if (reason === "length") parts.push("cut at the token limit");
  return parts.join(" · ");
}

function contentOf(text, pictures) {
  if (!pictures.length) return text;
  return [...pictures.map(({ url }) => ({ type: "image_url", image_url: { url } })), { type: "text", text }];
}

function addMessage(role, text, pictures = []) {
  const log = $("messages");
  log.querySelector(".empty")?.remove();
  const body = make("div", { className: "text" });
  const who = make("span", { className: "hidden", textContent: role === "user" ? "You: " : "Model: " });
  const item = make("li", { className: role }, who, ...pictures.map(pictureOf), body);
  if (text) body.append(text);
  log.append(item);
  log.scrollTop = log.scrollHeight;
  return { item, body };
}

async function ask(question, pictures) {
  const log = $("messages");
  addMessage("user", question, pictures);
  const { item, body } = addMessage("assistant");
  const note = item.appendChild(make("p", { className: "about", textContent: "waiting for the first token" }));
  const thoughts = make("div", { className: "text" });
  const thinking = make("details", {}, make("summary", { textContent: "Reasoning" }), thoughts);
  const system = $("system").value ? [{ role: "system", content: $("system").value }] : [];
  const messages = [...system, ...conversation, { role: "user", content: contentOf(question, pictures) }];
  let latest = { text: "", thought: "" };
  let frame = 0;
  const draw = () => {
    frame = 0;
    const atEnd = log.scrollTop + log.clientHeight > log.scrollHeight - 40;
    if (latest.thought && !thinking.isConnected) body.before(thinking);
    thoughts.textContent = latest.thought;
    body.replaceChildren(...formatted(latest.text));
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  answering = new AbortController();
  $("send").disabled = true;
  $("stop").disabled = false;
  log.setAttribute("aria-busy", "true");
  try {
    const result = await answer(messages, samplingFields(), answering.signal, (partial, progress) => {
      latest = partial;
      if (progress) note.textContent = `reading the prompt, ${percent(progress.processed / progress.total)}`;
      else if (partial.text) note.textContent = "answering";
      frame ||= requestAnimationFrame(draw);
    });
    conversation.push(messages.at(-1), { role: "assistant", content: result.text });
    note.textContent = about(result);
  } catch (error) {
    const stopped = error.name === "AbortError";
    note.textContent = stopped ? "stopped" : error.message;
    note.classList.toggle("error", !stopped);
    if (stopped && latest.text) conversation.push(messages.at(-1), { role: "assistant", content: latest.text });
    else {
      $("message").value ||= question; // to be sent again
      returnPictures(pictures);
    }
  } finally {
    cancelAnimationFrame(frame);
    draw();
    log.scrollTop = log.scrollHeight;
    log.setAttribute("aria-busy", "false");
    answering = null;
    $("send").disabled = false;
    $("stop").disabled = true;
  }
}

export function stopAnswer() {
  answering?.abort();
}

export function startChat() {
  $("chat-form").addEventListener("submit", (event) => {
    event.preventDefault();
    const question = $("message").value.trim();
    if (!question || answering) return;
    $("message").value = "";
    ask(question, takePictures());
  });
  // A field with a wrong value is shown, so that the browser can say so there.
  $("chat-form").addEventListener("invalid", ({ target }) => target.closest("details")?.setAttribute("open", ""), true);
  $("message").addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    $("chat-form").requestSubmit();
  });
  $("chat").addEventListener("keydown", (event) => {
    if (event.key === "Escape") stopAnswer();
  });
  $("stop").addEventListener("click", stopAnswer);
  $("clear").addEventListener("click", () => {
    stopAnswer();
    conversation.length = 0;
    $("messages").replaceChildren(make("li", { className: "empty", textContent: "Nothing was asked yet." }));
    $("message").focus();
  });
}
