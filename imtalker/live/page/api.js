// Requests to the server: JSON in and out, errors in words.

let key = sessionStorage.getItem("imtalker-key");

export function setKey(value) {
  key = value;
  sessionStorage.setItem("imtalker-key", value);
}

export const theKey = () => key;

function headers(more = {}) {
  return key ? { ...more, authorization: `Bearer ${key}` } : more;
}

export async function ask(method, path, body = undefined, signal = undefined) {
  const json = body !== undefined && !(body instanceof FormData);
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: headers(json ? { "content-type": "application/json" } : {}),
      body: json ? JSON.stringify(body) : body,
      signal,
    });
  } catch {
    signal?.throwIfAborted();
    throw new Error("The server does not answer. Is it still running?");
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    const error = new Error(sentence(told.error || `The server answered with status ${answer.status}.`));
    error.status = answer.status;
    throw error;
  }
  return answer;
}

export async function askJson(method, path, body, signal) {
  const answer = await ask(method, path, body, signal);
  return answer.status === 204 ? null : answer.json();
}

// Tells the server that something is not needed any more, even while the page is being closed.
export function leave(path) {
  fetch(path, { method: "DELETE", headers: headers(), keepalive: true }).catch(() => {});
}

export function formOf(parts) {
  const form = new FormData();
  for (const [name, value] of Object.entries(parts)) {
    if (value instanceof Blob) form.append(name, value, value.name || name);
    else form.append(name, value);
  }
  return form;
}

// The reports of a job until it has ended, or the connection has. EventSource could not send the key.
export async function* reports(job, signal) {
  const answer = await ask("GET", `/v1/jobs/${job}/events`, undefined, signal);
  const lines = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await lines.read();
    if (done) return;
    text += value;
    const events = text.split("\n\n");
    text = events.pop();
    for (const event of events) {
      const data = event.split("\n").find((line) => line.startsWith("data: ")); // none in a comment
      if (data) yield JSON.parse(data.slice(6));
    }
  }
}

export function sentence(words) {
  const first = words.charAt(0).toUpperCase() + words.slice(1);
  return /[.!?]$/.test(first) ? first : `${first}.`;
}
