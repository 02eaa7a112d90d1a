// Background requests, so that there is a batch.

import { $, notice } from "./dom.js";
import { live } from "./live.js";
import { call } from "./server.js";

const PROMPTS = [
  "Q: 37 + 58 = ?\nA:", "Q: Sort these numbers: 9 4 7 1 8\nA:", "In the beginning", "def add(a, b):\n    return",
  "Q: What comes next? 3 6 9 12\nA:", "The king said unto", "Q: Reverse the word: lantern\nA:", "import os\n\nfor name in",
  "Q: 14 times 6 = ?\nA:", "git-log - Show commit logs\n\n", "Shall I compare thee", "class Node:\n    def __init__(self",
  "Q: Is 482 greater than 428?\nA:", "noun: a small", "Q: 91 - 46 = ?\nA:", "The kernel",
];
const MAX_TOKENS = [256, 192]; // of the two halves, which so do not end together
let stop = null;

// Keeps `size` completions in flight until the next call. fields: of their requests, beside the usual ones.
// Each half of them is one request with many prompts: a browser has six connections to a server, not thirty-one.
export function setCrowd(size, fields = {}) {
  stop?.abort();
  stop = new AbortController();
  $("crowd").value = size;
  $("crowd-count").textContent = size;
  for (const [half, count] of [Math.ceil(size / 2), Math.floor(size / 2)].entries())
    if (count > 0) keepRunning(half, count, fields, stop.signal);
}

export const crowdSize = () => Number($("crowd").value);

async function keepRunning(half, count, fields, signal) {
  const room = Math.floor((live.state?.limits.max_model_len ?? 1024) / 2);
  for (let round = 0; !signal.aborted; ++round) {
    const prompt = Array.from({ length: count }, (_, i) => PROMPTS[(round + half + 2 * i) % PROMPTS.length]);
    const sampling = { max_tokens: Math.min(MAX_TOKENS[half], room), ignore_eos: true, temperature: 1, seed: 2 * round + half };
    const body = { prompt, ...sampling, ...fields };
    try {
      await (await call("v1/completions", { body, signal })).arrayBuffer();
    } catch (error) {
      if (signal.aborted) return;
      setCrowd(0);
      notice(`The crowd has stopped: ${error.message}`);
    }
  }
}

export function startCrowd() {
  $("crowd").addEventListener("input", () => ($("crowd-count").textContent = $("crowd").value));
  $("crowd").addEventListener("change", () => {
    notice("");
    setCrowd(crowdSize());
  });
  document.addEventListener("visibilitychange", () => document.hidden && setCrowd(0)); // nobody looks
}
