// Shows what a model writes, event by event, as text and never as markup. `transcript.html` shows the same blocks once
// the job has ended.
import { follow } from "./events.js";

const FINAL = new Set(["job.completed", "job.failed", "job.cancelled", "job.expired"]);

export class Answer {
  #root;
  #blocks = new Map();
  #turns = new Map();
  #attempt = 0;

  constructor(root, format) {
    this.#root = root;
    this.take = format === "responses" ? this.#response : this.#chat;
  }

  get empty() {
    return this.#blocks.size === 0;
  }

  clear() {
    for (const turn of this.#turns.values()) turn.remove();
    this.#turns.clear();
    this.#blocks.clear();
  }

  // A chat job's next attempt begins its text anew; a response's goes on.
  begin(attempt) {
    if (attempt > this.#attempt && this.take === this.#chat) this.clear();
    this.#attempt = attempt;
  }

  #turn(name) {
    let turn = this.#turns.get(name);
    if (!turn) {
      turn = element("article", "turn turn-assistant");
      turn.append(element("h3", "", name));
      this.#turns.set(name, turn);
      this.#root.append(turn);
    }
    return turn;
  }

  #write(turn, key, kind, title, text) {
    let block = this.#blocks.get(key);
    if (!block) {
      const box = element("div", `block block-${kind}`);
      const heading = element("h4", "", title);
      const said = element("div", "said");
      said.dir = "auto";
      said.append((block = { heading, text: document.createTextNode("") }).text);
      if (title) box.append(heading);
      box.append(said);
      this.#turn(turn).append(box);
      this.#blocks.set(key, block);
    }
    block.text.appendData(text);
    return block;
  }

  #chat(chunk) {
    for (const { index, delta } of chunk.choices ?? []) {
      const turn = index ? `assistant, choice ${index + 1}` : "assistant";
      const write = (kind, text, title = "") => text && this.#write(turn, `${index} ${kind}`, kind, title, text);
      write("reasoning", delta.reasoning_content, "reasoning");
      write("text", delta.content);
      write("refusal", delta.refusal, "refusal");
      for (const call of delta.tool_calls ?? []) {
        const named = call.function ?? call.custom ?? {};
        const title = `calls ${named.name ?? ""}`;
        this.#write(turn, `${index} call ${call.index}`, "call", title, named.arguments ?? named.input ?? "");
      }
    }
  }

  #response(event) {
    const item = event.item;
    if (event.type === "response.output_item.added" && /call$/.test(item.type)) {
      this.#write("assistant", `${event.output_index} call`, "call", `calls ${item.name ?? item.type}`, "");
    }
    const kind = /^response\.([a-z_]+)\.delta$/.exec(event.type)?.[1];
    if (!kind || typeof event.delta !== "string") return;
    const part = event.content_index ?? event.summary_index ?? 0;
    if (kind === "output_text") this.#write("assistant", `${event.output_index} ${part} text`, "text", "", event.delta);
    else if (kind === "refusal") this.#write("assistant", `${event.output_index} ${part} refusal`, "refusal", kind, event.delta);
    else if (kind.startsWith("reasoning"))
      this.#write("assistant", `${event.output_index} ${part} ${kind}`, "reasoning", "reasoning", event.delta);
    else this.#write("assistant", `${event.output_index} call`, "call", kind.replaceAll("_", " "), event.delta);
  }
}

// Streams a job's answer into a section with `data-events`. `on` has functions for what the page does besides: `delta`
// at each delta, `changed` at another state, `ended` at the end, with the job.
export async function stream(section, on = {}) {
  const say = section.querySelector("[data-said]");
  const whole = "whole" in section.dataset; // the reader wants no text before the end
  const answer = new Answer(section, section.dataset.format);
  section.setAttribute("aria-busy", "true");
  const refused = await follow(
    section.dataset.events,
    ({ name, data }) => {
      if (name === "job.queued") say.textContent = "Waiting for a worker.";
      else if (name === "job.started") {
        answer.begin(data.attempt);
        say.textContent = `Attempt ${data.attempt} runs. No delta yet.`;
        on.changed?.();
      } else if (name === "job.delta") {
        say.textContent = whole ? "The model writes. Its answer is shown at its end." : "The model writes.";
        if (!whole) answer.take(data);
        on.delta?.();
      } else if (name === "job.retrying") {
        if (section.dataset.format === "chat") answer.clear();
        say.textContent = `Attempt ${data.attempt} was lost. The job waits for its next one.`;
        on.changed?.();
      } else if (FINAL.has(name)) {
        say.textContent = answer.empty && name !== "job.completed" ? "Nothing." : "";
        on.ended?.(data);
        return true;
      }
      return false;
    },
    () => answer.clear(),
  );
  section.removeAttribute("aria-busy");
  if (refused === 404) say.textContent = "The job was erased.";
  else if (refused) say.textContent = `The API refused the stream (${refused}). Open the page again.`;
}

function element(name, classes, text = "") {
  const made = document.createElement(name);
  if (classes) made.className = classes;
  made.textContent = text;
  return made;
}
