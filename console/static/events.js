// Follows server-sent events to their end over any number of connections. Each new connection goes on after the last
// event that arrived. While the page is hidden there is no connection: a browser allows few to one host.
import { ask } from "./connection.js";

// Milliseconds without a byte after which a connection counts as lost (the API writes every 15 s), and of the first and
// the longest pause before the next connection.
const SILENCE = 60_000;
const SHORTEST = 500;
const LONGEST = 10_000;

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

function shown() {
  if (document.visibilityState === "visible") return Promise.resolve();
  return new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
}

// Calls `take({ name, id, data })` for each event until it returns true. `restarted` is called when the stream begins
// anew. Returns null, or the status with which the stream was refused for good.
export async function follow(url, take, restarted) {
  let last = null;
  let wait = SHORTEST;
  for (;;) {
    await shown();
    const abort = new AbortController();
    const hide = () => document.visibilityState === "hidden" && abort.abort();
    document.addEventListener("visibilitychange", hide);
    try {
      const answer = await ask(url, { headers: last ? { "last-event-id": last } : {}, signal: abort.signal });
      if (answer?.status === 204) return null;
      if (answer?.ok) {
        for await (const event of events(answer.body, abort)) {
          wait = SHORTEST;
          if (event.id) last = event.id;
          if (take(event)) return null;
        }
      } else if (answer?.status === 400 && last) {
        last = null; // the job has no such event any more
        restarted();
      } else if (answer && answer.status !== 429 && answer.status < 500) {
        return answer.status;
      }
    } catch (error) {
      if (error.name !== "AbortError" && !(error instanceof TypeError)) throw error; // the connection broke
    } finally {
      document.removeEventListener("visibilitychange", hide);
      abort.abort();
    }
    await pause(wait * (0.75 + Math.random() / 2));
    wait = Math.min(wait * 2, LONGEST);
  }
}

async function* events(body, abort) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const timer = setTimeout(() => abort.abort(), SILENCE);
    const { done, value } = await reader.read().finally(() => clearTimeout(timer));
    if (done) return;
    const whole = (rest + value).split("\n\n");
    rest = whole.pop();
    for (const text of whole) {
      const event = parse(text);
      if (event) yield event;
    }
  }
}

function parse(text) {
  const event = { name: "message", id: null, data: null };
  for (const line of text.split("\n")) {
    const [field, value] = line.split(/: ?(.*)/s);
    if (field === "event") event.name = value;
    if (field === "id") event.id = value;
    if (field === "data") event.data = JSON.parse(value);
  }
  return event.data === null ? null : event;
}
