// The playground: the answer streams in, and Ctrl+Enter sends the message.
import { stream } from "./answer.js";
import { refresh } from "./live.js";

const section = document.getElementById("answer");
if (section?.dataset.events) {
  stream(section, {
    changed: refresh,
    ended: () => location.reload(), // with the form for the next message
  });
}

document.getElementById("message")?.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) event.target.form.requestSubmit();
});
