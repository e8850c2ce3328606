// The line on top that says since when the API or the console does not answer.
const banner = document.getElementById("connection");
let since = null;

export function lost(what = "The API is unavailable") {
  since ??= new Date();
  banner.textContent = `${what} since ${since.toLocaleTimeString()}. This page retries by itself and keeps what it shows.`;
  banner.hidden = false;
}

export function restored() {
  since = null;
  banner.hidden = true;
}

// A fetch of this console. It returns null, and says so on the page, where nothing answers; it goes to the sign-in
// where the session has ended.
export async function ask(url, options = {}) {
  const token = document.querySelector('meta[name="csrf"]')?.content;
  const headers = { ...options.headers, ...(options.method && options.method !== "GET" ? { "x-csrf-token": token } : {}) };
  let answer;
  try {
    answer = await fetch(url, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    lost("The console is unavailable");
    return null;
  }
  if (answer.redirected && new URL(answer.url).pathname === "/sign-in") {
    const target = new URL(answer.url);
    if (target.searchParams.has("next")) target.searchParams.set("next", location.pathname + location.search);
    location.assign(target);
    return null;
  }
  if (answer.status === 503) {
    lost();
    return null;
  }
  restored();
  return answer;
}
