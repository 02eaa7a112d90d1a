// Small helpers for the document, and how numbers are written.

export const $ = (id) => document.getElementById(id);
export const clamp = (x, low, high) => Math.min(Math.max(x, low), high);
export const sleep = (ms) => new Promise((done) => setTimeout(done, ms));
export const number = (x, digits = 1) => (Number.isFinite(x) ? x.toFixed(digits).replace(/^-(?=0\.?0*$)/, "") : "–");
// Sets how much of a gauge an element fills. part: 0..1.
export const fill = (id, part) => ($(id).style.width = `${100 * clamp(part, 0, 1)}%`);
export const percent = (x, digits = 0) => (Number.isFinite(x) ? `${number(100 * x, digits)} %` : "–");

// Returns a policy without its keys: those of the canonical text are many.
export const policyName = (policy) => policy.split(":")[0];

export function make(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

// Says at the top of the page what went wrong; "" = nothing.
export function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

// Returns a canvas's context, in CSS pixels, and its size.
export function surface(canvas, height = canvas.clientHeight) {
  const width = canvas.clientWidth, scale = window.devicePixelRatio || 1;
  canvas.style.height = `${height}px`;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.font = "11px system-ui, sans-serif";
  return { context, width, height };
}

// Returns one of the style sheet's colours, "#rrggbb".
export const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
