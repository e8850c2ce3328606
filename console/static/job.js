// A job's page: its text streams in, and its facts follow at each change.
import { stream } from "./answer.js";
import { refresh } from "./live.js";

const section = document.getElementById("answer");
if (section.dataset.events) {
  stream(section, {
    changed: refresh,
    ended(job) {
      if (job.status === "completed") section.dataset.live = "1"; // takes the whole answer
      refresh();
    },
  });
}
