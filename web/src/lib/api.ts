// Talking to the server.

import { keys } from "./key.svelte";
import type { Candidate, Model, Sampling, Spoken, Token } from "./types";

/** A refusal of the server. */
export class Refused extends Error {
  constructor(
    message: string,
    readonly status = 0,
  ) {
    super(message);
  }
}

interface Asked {
  method?: string;
  body?: unknown;
  form?: FormData;
  signal?: AbortSignal;
  keepalive?: boolean;
}

/** The response, once a key was given if one is asked for. */
export async function send(path: string, { method, body, form, signal, keepalive = false }: Asked = {}): Promise<Response> {
  for (;;) {
    const key = keys.value;
    const headers: Record<string, string> = {};
    if (body !== undefined) headers["Content-Type"] = "application/json";
    if (key) headers["Authorization"] = `Bearer ${key}`;
    let response: Response;
    try {
      response = await fetch(path, {
        method: method ?? (body === undefined && !form ? "GET" : "POST"),
        headers,
        body: form ?? (body === undefined ? null : JSON.stringify(body)),
        signal: signal ?? null,
        keepalive,
      });
    } catch (error) {
      if (aborted(error)) throw error;
      throw new Refused("The server does not answer. Is it still running?");
    }
    if (response.ok) return response;
    if (response.status === 401) {
      await keys.ask(key);
      continue;
    }
    const told = (await response.json().catch(() => ({}))) as { error?: { message?: string } };
    throw new Refused(told.error?.message ?? `The server answered ${response.status}.`, response.status);
  }
}

export const aborted = (error: unknown): boolean => error instanceof DOMException && error.name === "AbortError";

export const wrong = (error: unknown): string => (error instanceof Error ? error.message : String(error));

export async function json<T>(path: string, asked?: Asked): Promise<T> {
  return (await (await send(path, asked)).json()) as T;
}

export async function list<T>(path: string): Promise<T[]> {
  return (await json<{ data: T[] }>(path)).data;
}

export const models = () => list<Model>("v1/models");

/** The likeliest next tokens of raw text. */
export async function nextTokens(model: string, prompt: string, k: number, signal?: AbortSignal): Promise<Candidate[]> {
  const asked = { body: { model, prompt, k }, ...(signal && { signal }) };
  return (await json<{ tokens: Candidate[] }>("v1/next", asked)).tokens;
}

export interface Usage {
  prompt_tokens: number;
  completion_tokens: number;
  prompt_tokens_details?: { cached_tokens?: number };
  cost?: number;
}

export interface Piece {
  text: string;
  reasoning: string;
  tokens: Token[];
  finish: string | null;
  usage: Usage | null;
}

interface WireToken {
  token: string;
  logprob: number;
  bytes: number[] | null;
  top_logprobs: { token: string; logprob: number }[];
}

interface Chunk {
  error?: { message: string };
  usage?: Usage | null;
  choices: {
    delta: { content?: string; reasoning_content?: string };
    logprobs?: { content?: WireToken[] } | null;
    finish_reason: string | null;
  }[];
}

// Models that refused to tell log-probabilities (some remote ones do) are not asked again.
const silent = new Set<string>();

/** The answer as it is made; tokens carry log-probabilities where the model tells them. */
export async function* answer(model: string, messages: Spoken[], sampling: Sampling, signal: AbortSignal): AsyncGenerator<Piece> {
  const body: Record<string, unknown> = { model, messages, ...sampling, stream: true, stream_options: { include_usage: true } };
  if (!silent.has(model)) Object.assign(body, { logprobs: true, top_logprobs: 5 });
  let response: Response;
  try {
    response = await send("v1/chat/completions", { body, signal });
  } catch (error) {
    if (!(error instanceof Refused) || !/logprobs/.test(error.message) || silent.has(model)) throw error;
    silent.add(model);
    yield* answer(model, messages, sampling, signal);
    return;
  }
  for await (const event of events(response)) {
    if (event.error) throw new Refused(event.error.message);
    const choice = event.choices[0];
    yield {
      text: choice?.delta.content ?? "",
      reasoning: choice?.delta.reasoning_content ?? "",
      tokens: (choice?.logprobs?.content ?? []).map(compact),
      finish: choice?.finish_reason ?? null,
      usage: event.usage ?? null,
    };
  }
}

function compact({ token, logprob, bytes, top_logprobs }: WireToken): Token {
  const kept: Token = [token, round(logprob), top_logprobs.map((t) => [t.token, round(t.logprob)])];
  if (token.includes("\ufffd") && bytes) kept.push(bytes);
  return kept;
}

const round = (logprob: number) => Math.round(logprob * 1e4) / 1e4;

/** The objects of a server-sent event stream. */
async function* events(response: Response): AsyncGenerator<Chunk> {
  if (!response.body) return;
  const reader = response.body.pipeThrough(new TextDecoderStream() as unknown as ReadableWritablePair<string, Uint8Array<ArrayBuffer>>).getReader();
  let held = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      held += value;
      const parts = held.split("\n\n");
      held = parts.pop() ?? "";
      for (const part of parts) {
        if (!part.startsWith("data: ")) continue;
        const data = part.slice(6);
        if (data === "[DONE]") return;
        yield JSON.parse(data) as Chunk;
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** Saves an answer of the server as a file of the browser. */
export async function download(path: string, name: string): Promise<void> {
  const url = URL.createObjectURL(await (await send(path)).blob());
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
}
