/** [text, logprob, [[text, logprob], ...], bytes when it is part of a character]: short, because many are kept. */
export type Token = [string, number, [string, number][], number[]?];

export interface Model {
  id: string;
  state?: string;
  owned_by?: string;
  kind?: string;
  /** Whether it may be shown images; what runs on the server itself reads text only. */
  images?: boolean;
  /** US dollars a token, as text, where a hosted model tells it. */
  pricing?: { prompt?: string; completion?: string };
}

export type Sampling = Record<string, unknown>;

export interface Timings {
  model: string;
  tokens: number;
  prompt_tokens?: number;
  cached_tokens?: number;
  first_ms: number;
  total_ms: number;
  tokens_per_second: number;
  cost?: number;
}

export interface Attachment {
  name: string;
  bytes: number;
  text: string;
  /** An image as a data: URL; its text is empty then. */
  image?: string;
}

export interface ChatEntry {
  id: string;
  title: string;
  folder: string;
  system: string;
  settings: { sampling?: Sampling; model?: string };
  leaf: string | null;
  created: number;
  updated: number;
}

export interface MessageEntry {
  id: string;
  parent: string | null;
  role: "user" | "assistant";
  content: string;
  reasoning?: string;
  model?: string;
  sampling?: Sampling;
  timings?: Timings & { forked?: number };
  attachments?: Attachment[];
  finish?: string;
  created: number;
  siblings: string[];
  has_tokens?: boolean;
}

export interface Found {
  id: string;
  title: string;
  folder: string;
  updated: number;
  message: string | null;
  role: string;
  excerpt: string;
}

export interface Preset {
  name: string;
  system?: string;
  model?: string;
  sampling?: Sampling;
}

export interface Candidate {
  id: number;
  text: string;
  logprob: number;
  prob: number;
}

export type Part = { type: "text"; text: string } | { type: "image_url"; image_url: { url: string } };

export interface Spoken {
  role: "system" | "user" | "assistant";
  content: string | Part[];
}
