// `<time>` shows how long ago it is; its title is the moment in the reader's own zone.
const spans = [[86400, "day"], [3600, "hour"], [60, "minute"], [1, "second"]];
const format = new Intl.RelativeTimeFormat("en", { numeric: "auto", style: "short" });

function relative(at) {
  const seconds = (at - Date.now()) / 1000;
  if (Math.abs(seconds) > 7 * 86400) return at.toLocaleDateString();
  const [size, unit] = spans.find(([size]) => Math.abs(seconds) >= size) ?? [1, "second"];
  return format.format(Math.trunc(seconds / size), unit);
}

export function showTimes(root) {
  for (const element of root.querySelectorAll("time[datetime]")) {
    const at = new Date(element.dateTime);
    element.textContent = relative(at);
    element.title = at.toLocaleString();
  }
}

setInterval(() => showTimes(document), 10_000);
