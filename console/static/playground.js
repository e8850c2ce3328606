// The playground: the answer streams in, and Ctrl+Enter sends the message.
import { stream } from "./answer.js";
import { refresh } from "./live.js";

// When the message was sent, and how long its first delta took: kept in the tab, as the page is loaded in between.
const SENT = "playground-sent";
const FIRST = `playground-first ${new URLSearchParams(location.search).get("job")}`;

const section = document.getElementById("answer");
if (section?.dataset.events) {
  const sent = Number(sessionStorage.getItem(SENT));
  let first = sent > 0;
  // A job without an answer streams what its model wrote also when it has ended.
  const running = "live" in document.getElementById("stats").dataset;
  let leaving = false; // a form was sent: its answer is the next page
  document.addEventListener("submit", (event) => (leaving ||= !event.defaultPrevented));
  stream(section, {
    changed: refresh,
    delta() {
      if (first) sessionStorage.setItem(FIRST, (Date.now() - sent) / 1000);
      if (first) showFirst();
      first = false;
    },
    ended: () => running && !leaving && location.reload(), // with the form for the next message
  });
}

sessionStorage.removeItem(SENT);
document.getElementById("ask")?.addEventListener("submit", () => sessionStorage.setItem(SENT, Date.now()));

function showFirst() {
  const line = document.getElementById("first");
  const seconds = sessionStorage.getItem(FIRST);
  if (!line || !seconds) return;
  line.textContent = `First delta ${Number(seconds).toFixed(2)} s after Send.`;
  line.hidden = false;
}
showFirst();

document.getElementById("message")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
});
