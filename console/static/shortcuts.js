// Keys: `g` and a letter open a page, `j` and `k` move through rows, `/` goes to the first field, `?` lists the keys.
let leader = 0;

function move(step) {
  const rows = [...document.querySelectorAll("main tr[data-href]")];
  if (!rows.length) return;
  const at = rows.findIndex((row) => row.contains(document.activeElement));
  const next = rows[at < 0 ? (step > 0 ? 0 : rows.length - 1) : Math.min(rows.length - 1, Math.max(0, at + step))];
  next.querySelector("a")?.focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.matches("input, textarea, select, [contenteditable]") || document.querySelector("dialog[open]")) return;
  if (Date.now() - leader < 1500) {
    leader = 0;
    const link = document.querySelector(`nav a[data-shortcut="${CSS.escape(event.key)}"]`);
    if (link) return link.click();
  }
  switch (event.key) {
    case "g":
      leader = Date.now();
      break;
    case "j":
      move(1);
      break;
    case "k":
      move(-1);
      break;
    case "/":
      event.preventDefault();
      document.querySelector("main input:not([type=hidden]), main select, main textarea")?.focus();
      break;
    case "?":
      document.getElementById("shortcuts")?.showModal();
      break;
  }
});
