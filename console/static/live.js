// Regions that refresh themselves. `<section id="jobs" data-live="3">`: every 3 seconds the page is asked for again,
// and each such region takes its new content. A hidden page asks for nothing.
import { ask } from "./connection.js";
import { showTimes } from "./times.js";

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, seconds * 1000));
const regions = () => [...document.querySelectorAll("[data-live]")];

function pathTo(element) {
  if (element.id) return `#${CSS.escape(element.id)}`;
  return element.matches("a[href]") ? `a[href="${CSS.escape(element.getAttribute("href"))}"]` : null;
}

// What the reader has opened, typed or focused in a region survives its new content.
function replace(region, fresh) {
  const opened = new Set([...region.querySelectorAll("details[open][id]")].map((element) => element.id));
  for (const element of fresh.querySelectorAll("details[id]")) if (opened.has(element.id)) element.open = true;
  const focused = region.contains(document.activeElement) ? document.activeElement : null;
  if (focused?.matches("input, textarea, select")) return;
  const path = focused && pathTo(focused);
  region.replaceChildren(...fresh.childNodes);
  if (!fresh.dataset.live) delete region.dataset.live; // it changes no more
  if (path) region.querySelector(path)?.focus({ preventScroll: true });
  showTimes(region);
  region.dispatchEvent(new CustomEvent("refreshed", { bubbles: true }));
}

// A button is pressed, or its question is open: in new content it would be another button, and the click would be lost.
const isPressed = () => document.querySelector("dialog[open], button:active, a:active, summary:active");

export async function refresh() {
  while (isPressed()) await pause(0.2);
  if (!regions().length) return;
  const answer = await ask(location.href, { headers: { "console-refresh": "1" } });
  if (!answer?.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  if (isPressed()) return refresh();
  for (const region of regions()) {
    const next = fresh.getElementById(region.id);
    if (next && next.innerHTML !== region.dataset.shown) {
      const shown = next.innerHTML;
      replace(region, next);
      region.dataset.shown = shown;
    }
  }
}


async function loop() {
  while (regions().length) {
    await pause(Math.min(...regions().map((region) => Number(region.dataset.live))));
    if (document.visibilityState === "visible") await refresh();
  }
}

if (regions().length) loop();
