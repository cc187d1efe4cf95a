// Requests to the server that this page came from, and what it says when it refuses one.

let key = "";

/** Sent with every request from now on; it is kept nowhere else. */
export function useKey(secret) {
  key = secret;
}

export class Refused extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

/** The response to a request and the milliseconds until it was complete, or began (`stream`). */
export async function ask(path, { json, form, body, signal, stream = false } = {}) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  if (json !== undefined) headers["content-type"] = "application/json";
  const content = json === undefined ? (form ?? body) : JSON.stringify(json);
  const begun = performance.now();
  let response;
  try {
    response = await fetch(path, {
      method: content === undefined ? "GET" : "POST",
      headers,
      body: content,
      signal,
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The server cannot be reached.", 0);
  }
  if (!response.ok) throw await refusal(response);
  const blob = stream ? null : await response.blob();
  return {
    ms: performance.now() - begun,
    headers: response.headers,
    stream: response.body,
    blob,
    json: async () => JSON.parse(await blob.text()),
  };
}

async function refusal(response) {
  const text = await response.text();
  let words = text || response.statusText;
  try {
    words = JSON.parse(text).error ?? words;
  } catch {
    // Somebody else's words, as they are.
  }
  const again = response.headers.get("retry-after");
  const wait = again ? ` Try again in ${again} s.` : "";
  return new Refused(`${words}.${wait}`.replace(/\.\.+/, "."), response.status);
}

/** Hands on the latest value only, one at a time: what came between is passed over. */
export function latest(work) {
  let busy = false;
  let next = null;
  return async function push(...values) {
    next = values;
    if (busy) return;
    busy = true;
    try {
      while (next) {
        const given = next;
        next = null;
        await work(...given);
      }
    } finally {
      busy = false;
    }
  };
}

/** The JSON of each server-sent event of a stream. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part.startsWith("data: ")) yield JSON.parse(part.slice(6));
    }
  }
}
