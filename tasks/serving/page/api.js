// What is asked of the server, in OpenAI's API, and what went wrong, in words.

export class Fault extends Error {
  constructor(message, { status = 0, seconds = 0 } = {}) {
    super(message);
    this.status = status;
    this.seconds = seconds; // after which the server says to try again
  }
}

const MEANING = {
  413: "The conversation is too long for the server",
  429: "The server is busy",
  503: "The server is not ready",
  504: "The answer came too late",
};

async function call(path, key, options) {
  const headers = { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
  const response = await fetch(path, { ...options, headers, cache: "no-store" }).catch((error) => {
    throw error.name === "AbortError" ? error : new Fault("The server cannot be reached");
  });
  if (response.ok) return response;
  const { status } = response;
  const asks = key ? "The server does not know this API key" : "The server asks for an API key";
  if (status === 401) throw new Fault(asks, { status });
  const body = await response.json().catch(() => ({}));
  const words = [MEANING[status], body.error?.message ?? `HTTP ${status} ${response.statusText}`];
  const id = status >= 500 && response.headers.get("x-request-id"); // what to look for in the server's log
  throw new Fault(words.filter(Boolean).join(": ") + (id ? ` (request ${id})` : ""), {
    status,
    seconds: Number(response.headers.get("retry-after")) || 0,
  });
}

export async function served(key, signal) {
  const models = await (await call("v1/models", key, { signal })).json();
  return models.data[0];
}

async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ; ) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) if (line.startsWith("data:")) yield line.slice(5).trim();
  }
}

/* Streams one answer. onStart gets {version, digest}, onText the text so far; returned are the figures:
   ttftMs and speed (tokens a second after the first) as this browser saw them, tokens and ending as the server says. */
export async function complete(body, { key, signal, onStart, onText }) {
  const asked = performance.now();
  const request = JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } });
  const response = await call("v1/chat/completions", key, { method: "POST", body: request, signal });
  let version = response.headers.get("x-vinoflow-version") ?? "";
  let digest = response.headers.get("x-vinoflow-digest") ?? "";
  if (version) onStart({ version, digest });
  let [text, first, last, ending, usage] = ["", 0, 0, "", null];
  for await (const data of events(response.body)) {
    if (data === "[DONE]") {
      const tokens = usage?.completion_tokens;
      const speed = tokens > 1 && last > first ? ((tokens - 1) * 1000) / (last - first) : 0;
      return { ending, tokens, ttftMs: first && first - asked, speed };
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new Fault(chunk.error.message);
    if (!version && chunk.system_fingerprint) {
      [, version, digest] = chunk.system_fingerprint.match(/^(.*)-(.*)$/s) ?? ["", chunk.system_fingerprint, ""];
      onStart({ version, digest });
    }
    usage = chunk.usage ?? usage;
    const choice = chunk.choices?.[0];
    ending = choice?.finish_reason ?? ending;
    if (choice?.finish_reason) last = performance.now(); // the token that ends an answer has no text, but took its time
    if (!choice?.delta?.content) continue;
    last = performance.now();
    first ||= last;
    text += choice.delta.content;
    onText(text, first - asked);
  }
  throw new Fault("The connection ended before the answer did");
}
