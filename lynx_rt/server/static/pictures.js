// Images for the next message: chosen, dropped or pasted. They are data: URLs, and stay in this tab until the message is sent.

import { $, make } from "./dom.js";

const MOST_BYTES = 20e6; // of a message's images together, so that it stays below the server's limit of a body
let pictures = []; // {name, url}
let offered = false; // the model reads images

// Shows or hides what images are added with.
export function offerPictures(can) {
  offered = can;
  $("add-picture").hidden = !can;
}

function say(text) {
  $("picture-note").textContent = text;
}

function read(file) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve({ name: file.name || "pasted image", url: reader.result });
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
}

export const pictureOf = ({ name, url }) => make("img", { src: url, alt: name, className: "picture" });

function draw() {
  const items = pictures.map((picture, i) => {
    const remove = make("button", { type: "button", textContent: "×", ariaLabel: `Remove ${picture.name}` });
    remove.addEventListener("click", () => {
      pictures = pictures.filter((other) => other !== picture);
      draw();
      ($("pictures").querySelectorAll("button")[i] ?? $("message")).focus();
    });
    return make("li", {}, pictureOf(picture), remove);
  });
  $("pictures").replaceChildren(...items);
  $("pictures").hidden = !items.length;
}

async function add(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  if (!offered) return say("This model reads text only.");
  if (images.length < files.length) say("Only images can be added.");
  else say("");
  try {
    const fresh = await Promise.all(images.map(read));
    const all = [...pictures, ...fresh];
    if (all.reduce((sum, { url }) => sum + url.length, 0) > MOST_BYTES) return say("These images are too large together.");
    pictures = all;
    draw();
  } catch (error) {
    say(error.message);
  }
}

// Returns the images of the message that is being sent, and forgets them.
export function takePictures() {
  const taken = pictures;
  pictures = [];
  say("");
  draw();
  return taken;
}

// Puts images of a message that was not answered back, unless others are there.
export function returnPictures(taken) {
  if (pictures.length) return;
  pictures = taken;
  draw();
}

export function startPictures() {
  $("add-picture").addEventListener("click", () => $("picture-files").click());
  $("picture-files").addEventListener("change", () => {
    add($("picture-files").files);
    $("picture-files").value = ""; // so that the same file can be chosen again
  });
  $("message").addEventListener("paste", (event) => {
    if (!event.clipboardData.files.length) return;
    event.preventDefault();
    add(event.clipboardData.files);
  });
  // A file that is dropped beside the chat would be opened in the page's place.
  window.addEventListener("dragover", (event) => event.dataTransfer.types.includes("Files") && event.preventDefault());
  window.addEventListener("drop", (event) => {
    if (!event.dataTransfer.types.includes("Files")) return;
    event.preventDefault();
    if ($("chat").contains(event.target)) add(event.dataTransfer.files);
  });
}
