// The page of a lynx_rt server: a chat, what expert selection does meanwhile, and two policies side by side.
// Text from the server enters the document as text only. Nothing is kept but the API key, for as long as the tab lives.

import { startChat } from "./chat.js";
import { offerPolicies, startCompare } from "./compare.js";
import { startCrowd } from "./crowd.js";
import { $ } from "./dom.js";
import { drawHeat, showExperts, startHeat } from "./heat.js";
import { drawLine, watch } from "./live.js";
import { startPictures } from "./pictures.js";
import { startKeys } from "./server.js";

const tabs = [...document.querySelectorAll('[role="tab"]')];

function openTab(chosen) {
  for (const tab of tabs) {
    tab.setAttribute("aria-selected", String(tab === chosen));
    tab.tabIndex = tab === chosen ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = tab !== chosen;
  }
}

for (const [i, tab] of tabs.entries()) {
  tab.addEventListener("click", () => openTab(tab));
  tab.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowLeft" && event.key !== "ArrowRight") return;
    const other = tabs[(i + 1) % tabs.length]; // there are two
    openTab(other);
    other.focus();
  });
}

function redraw() {
  drawLine();
  drawHeat();
}
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
window.addEventListener("resize", redraw);

startKeys();
startChat();
startPictures();
startCrowd();
startCompare();
startHeat();
let beats = 0;
watch(
  () => {
    offerPolicies();
    showExperts();
  },
  (event) => event.decode_steps > 0 && ++beats % 4 === 0 && showExperts(),
);
