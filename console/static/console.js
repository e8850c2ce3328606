// What every page has: regions that refresh themselves, shortcuts, themes, times.
import "./live.js";
import "./shortcuts.js";
import { showTimes } from "./times.js";

showTimes(document);
document.querySelector("nav a[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

document.addEventListener("click", async (event) => {
  const opener = event.target.closest("[data-opens]");
  if (opener) document.getElementById(opener.dataset.opens).showModal();

  const copier = event.target.closest("[data-copy]");
  if (copier) {
    await navigator.clipboard.writeText(copier.dataset.copy);
    copier.textContent = "Copied";
    setTimeout(() => (copier.textContent = "Copy"), 1200);
  }

  if (event.target.closest("[data-theme-switch]")) {
    const root = document.documentElement;
    const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = dark ? "light" : "dark";
    document.cookie = `theme=${root.dataset.theme}; path=/; max-age=31536000; samesite=strict`;
  }

  // A row leads where its link does; a link or button in it, and selected text, keep their own meaning.
  const row = event.target.closest("tr[data-href]");
  if (row && !event.target.closest("a, button, input, summary") && getSelection().isCollapsed) {
    location.assign(row.dataset.href);
  }

  const menu = document.querySelector("details.menu[open]");
  if (menu && !menu.contains(event.target)) menu.open = false;
});

// A page that could not be shown opens once the API answers.
const retry = document.querySelector("[data-retry]");
if (retry) {
  const again = async () => {
    const answer = await fetch(location.href).catch(() => null);
    if (answer?.ok) location.reload();
    else setTimeout(again, retry.dataset.retry * 1000);
  };
  setTimeout(again, retry.dataset.retry * 1000);
}
