// What tokens tell: their text, how sure the model was, how to show both.

import type { Token } from "./types";

/** The text that each token adds; a character spread over several tokens appears with its last one. */
export function pieces(tokens: readonly Token[]): string[] {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  return tokens.map(([text, , , bytes]) => decoder.decode(bytes ? Uint8Array.from(bytes) : encoder.encode(text), { stream: true }));
}

/** 0 (expected) to 4 (a surprise), by probability. */
export function level(logprob: number): number {
  const p = Math.exp(logprob);
  return p > 0.8 ? 0 : p > 0.5 ? 1 : p > 0.2 ? 2 : p > 0.05 ? 3 : 4;
}

export function percent(logprob: number): string {
  const p = Math.exp(logprob) * 100;
  if (p >= 99.95) return "100 %";
  if (p < 0.001) return "< 0.001 %";
  return `${p.toFixed(p >= 10 ? 1 : p >= 0.1 ? 2 : 3)} %`;
}

/** A token's text made visible: spaces and line breaks show. */
export function visible(text: string): string {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

export const bits = (logprob: number): string => (-logprob / Math.LN2).toFixed(2);
