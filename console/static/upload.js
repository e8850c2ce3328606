// The form of a new batch: the chosen or dropped file is uploaded first, and then the form is sent with the file's id.
const form = document.getElementById("new-batch");
const input = document.getElementById("file");
const drop = document.getElementById("drop");
const chosen = document.getElementById("input_file_id");
const create = document.getElementById("create");
const error = document.getElementById("form-error");
const upload = document.getElementById("upload");
const bar = document.getElementById("upload-bar");
const text = document.getElementById("upload-text");

let sending = null;

function say(message) {
  error.textContent = message;
  error.hidden = !message;
  if (message) error.scrollIntoView({ block: "nearest" });
}

function size(bytes) {
  const units = ["B", "KiB", "MiB", "GiB"];
  const unit = Math.min(units.length - 1, bytes ? Math.floor(Math.log2(bytes) / 10) : 0);
  return `${(bytes / 1024 ** unit).toFixed(unit ? 1 : 0)} ${units[unit]}`;
}

function show(sent, total) {
  const percent = total ? Math.floor((100 * sent) / total) : 100;
  bar.value = percent;
  text.textContent =
    sent < total ? `${percent} %: ${size(sent)} of ${size(total)}` : `100 %: ${size(total)} sent. The API stores the file.`;
}

function end() {
  sending = null;
  upload.hidden = true;
  create.disabled = input.disabled = chosen.disabled = false;
}

function uploaded(file) {
  const option = new Option(`${file.filename}, ${size(file.bytes)}, ${file.id}`, file.id, true, true);
  chosen.add(option, 1);
  input.value = "";
  end();
  form.requestSubmit(create);
}

function refused(request) {
  end();
  let message = `The upload failed with status ${request.status}.`;
  try {
    message = JSON.parse(request.responseText).error ?? message;
  } catch {
    // Not from the console: a proxy's page, such as one for a body that is too large.
  }
  say(message);
}

function send(file) {
  const body = new FormData();
  body.append("purpose", "batch");
  body.append("file", file);
  const request = new XMLHttpRequest();
  request.open("POST", "/batches/files");
  request.setRequestHeader("x-csrf-token", document.querySelector('meta[name="csrf"]').content);
  request.upload.addEventListener("progress", (event) => show(Math.min(event.loaded, file.size), file.size));
  request.addEventListener("load", () => {
    if (new URL(request.responseURL).pathname === "/sign-in") location.assign(request.responseURL);
    else if (request.status === 200) uploaded(JSON.parse(request.responseText));
    else refused(request);
  });
  request.addEventListener("error", () => {
    end();
    say("The connection to the console was lost before the file was complete. Nothing was stored: send it again.");
  });
  request.addEventListener("abort", () => {
    end();
    say("The upload was cancelled. Nothing was stored.");
  });
  say("");
  sending = request;
  upload.hidden = false;
  create.disabled = input.disabled = chosen.disabled = true;
  show(0, file.size);
  request.send(body);
}

form.addEventListener("submit", (event) => {
  if (chosen.value) return;
  event.preventDefault();
  if (sending) return;
  const [file] = input.files;
  if (!file) say("Choose a file to upload, or one that is uploaded already.");
  else if (!file.size) say(`${file.name} is empty.`);
  else send(file);
});

document.getElementById("upload-cancel").addEventListener("click", () => sending?.abort());

// A file that is chosen is meant, whatever was selected before; and the other way round.
input.addEventListener("change", () => input.files.length && (chosen.value = ""));
chosen.addEventListener("change", () => chosen.value && (input.value = ""));

for (const name of ["dragenter", "dragover"]) {
  drop.addEventListener(name, (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
}
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  if (sending || !event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  input.dispatchEvent(new Event("change"));
});

addEventListener("beforeunload", (event) => {
  if (sending) event.preventDefault();
});
