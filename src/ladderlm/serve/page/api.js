// Talking to the server: its models, answers as streams, next-token tables.

import { $ } from "./dom.js";

const KEY = "ladderlm.key";

/** A refusal of the server, with the field it complains about. */
export class Refused extends Error {
  constructor(message, param) {
    super(message);
    this.param = param;
  }
}

async function send(path, body, signal) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { ...(body && { "Content-Type": "application/json" }), ...(key && { Authorization: `Bearer ${key}` }) };
    let response;
    try {
      response = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await askForKey();
      continue;
    }
    const { error } = await response.json().catch(() => ({}));
    throw new Refused(error?.message ?? `The server answered ${response.status}.`, error?.param);
  }
}

let asking = null;

function askForKey() {
  asking ??= new Promise((resolve) => {
    const dialog = $("key-dialog");
    dialog.addEventListener(
      "close",
      () => {
        sessionStorage.setItem(KEY, $("key").value.trim());
        $("key").value = "";
        asking = null;
        resolve();
      },
      { once: true },
    );
    dialog.showModal();
  });
  return asking;
}

export async function models() {
  return (await (await send("v1/models")).json()).data;
}

/** The likeliest next tokens: [{id, text, logprob, prob}]. */
export async function nextTokens(model, prompt, k, signal) {
  return (await (await send("v1/next", { model, prompt, k }, signal)).json()).tokens;
}

// Models that refused to tell log-probabilities (some remote servers do) are not asked again.
const silent = new Set();

/** The answer as it is made: yields {text, tokens, usage}; tokens carry log-probabilities where the model tells them. */
export async function* answer(model, messages, sampling, signal) {
  const body = { model, messages, ...sampling, stream: true, stream_options: { include_usage: true } };
  if (!silent.has(model)) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  let response;
  try {
    response = await send("v1/chat/completions", body, signal);
  } catch (error) {
    if (!(error instanceof Refused) || !/logprobs/.test(error.message) || silent.has(model)) throw error;
    silent.add(model);
    yield* answer(model, messages, sampling, signal);
    return;
  }
  for await (const event of events(response)) {
    if (event.error) throw new Refused(event.error.message);
    const [choice] = event.choices;
    yield {
      text: choice?.delta.content ?? "",
      reasoning: choice?.delta.reasoning_content ?? "",
      tokens: choice?.logprobs?.content ?? [],
      finish: choice?.finish_reason ?? null,
      usage: event.usage,
    };
  }
}

/** The objects of a server-sent event stream. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop();
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        const data = part.slice(6);
        if (data === "[DONE]") return;
        yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}
