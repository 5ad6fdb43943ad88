// How tokens are drawn: the controls, what they mean, and the values that were set. An untouched control sends nothing:
// the model's own setting holds.

import * as api from "./api";
import { keep, kept } from "./kept";
import type { Preset, Sampling } from "./types";

export interface Control {
  name: string;
  label: string;
  hint: string;
  min?: number;
  max?: number;
  step?: number;
  shown?: number;
  slider?: boolean;
}

export const BASIC: Control[] = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.05, shown: 0.7, slider: true },
  { name: "top_p", label: "Top p", hint: "the likeliest tokens that sum to this", min: 0.05, max: 1, step: 0.05, shown: 0.95, slider: true },
  { name: "min_p", label: "Min p", hint: "at least this share of the likeliest token's probability", min: 0, max: 0.5, step: 0.01, shown: 0, slider: true },
  { name: "top_k", label: "Top k", hint: "only this many likeliest tokens; 0 is off", min: 0, max: 1000, step: 1 },
  { name: "max_tokens", label: "Max tokens", hint: "an answer's length at most", min: 1, max: 100000, step: 1, shown: 1024 },
  { name: "seed", label: "Seed", hint: "the same seed draws the same answer", min: 0, max: 2 ** 31, step: 1 },
];

export const MORE: Control[] = [
  { name: "typical_p", label: "Typical p", hint: "tokens whose surprise is nearest to what is expected", min: 0.05, max: 1, step: 0.05 },
  { name: "repetition_penalty", label: "Repetition penalty", hint: "above 1: what was said becomes less likely", min: 0.1, max: 10, step: 0.05 },
  { name: "presence_penalty", label: "Presence penalty", hint: "once for every token already used", min: -2, max: 2, step: 0.1 },
  { name: "frequency_penalty", label: "Frequency penalty", hint: "for every time a token was used", min: -2, max: 2, step: 0.1 },
  { name: "dry_multiplier", label: "DRY", hint: "how strongly repeated phrases are held back; 0 is off", min: 0, max: 100, step: 0.1 },
  { name: "dry_base", label: "DRY base", hint: "growth with the phrase's length", min: 1, max: 100, step: 0.05 },
  { name: "dry_allowed_length", label: "DRY length", hint: "tokens that may repeat freely", min: 1, max: 1000, step: 1 },
  { name: "mirostat_tau", label: "Mirostat", hint: "keep the surprise near this many bits; 0 is off", min: 0, max: 100, step: 0.1 },
  { name: "mirostat_eta", label: "Mirostat rate", hint: "how quickly it corrects", min: 0.01, max: 1, step: 0.01 },
  { name: "min_tokens", label: "Min tokens", hint: "an answer's length at least", min: 0, max: 100000, step: 1 },
];

class Settings {
  values = $state<Sampling>(kept<Sampling>("sampling", {}));
  stop = $state(kept<string>("stop", ""));
  form = $state(kept<"" | "json_object" | "json_schema" | "regex" | "grammar">("form", ""));
  formText = $state(kept<string>("formText", ""));
  bias = $state(kept<string>("bias", ""));
  presets = $state.raw<Preset[]>([]);

  set(name: string, value: number | undefined): void {
    if (value === undefined || Number.isNaN(value)) delete this.values[name];
    else this.values[name] = value;
    this.save();
  }

  save(): void {
    keep("sampling", this.values);
    keep("stop", this.stop);
    keep("form", this.form);
    keep("formText", this.formText);
    keep("bias", this.bias);
  }

  reset(): void {
    this.values = {};
    this.stop = this.form = this.formText = this.bias = "";
    this.save();
  }

  /** What is sent; a small model may never stop by itself, so the length has a default of its own. Throws on what makes no sense. */
  get sent(): Sampling {
    const out: Sampling = { max_tokens: 1024, ...$state.snapshot(this.values) };
    if (typeof out["mirostat_tau"] === "number") {
      if (out["mirostat_tau"] > 0) out["mirostat"] = 2;
      else delete out["mirostat_tau"];
    }
    const stops = this.stop.split("\n").filter((line) => line !== "");
    if (stops.length) out["stop"] = stops.map((line) => line.replaceAll("\\n", "\n"));
    if (this.bias.trim()) out["logit_bias"] = biases(this.bias);
    const form = this.form && responseFormat(this.form, this.formText);
    if (form) out["response_format"] = form;
    return out;
  }

  /** Takes over a kept set of values. */
  take(sampling: Sampling): void {
    const { stop, logit_bias, response_format, mirostat: _, ...rest } = sampling;
    this.values = { ...rest };
    this.stop = Array.isArray(stop) ? stop.map((s) => String(s).replaceAll("\n", "\\n")).join("\n") : "";
    this.bias = Object.entries((logit_bias ?? {}) as Record<string, number>).map(([id, b]) => `${id} ${b}`).join("\n");
    const form = (response_format ?? null) as { type: Settings["form"]; json_schema?: { schema: unknown }; regex?: string; grammar?: string } | null;
    this.form = form?.type ?? "";
    this.formText = form?.json_schema ? JSON.stringify(form.json_schema.schema, null, 2) : (form?.regex ?? form?.grammar ?? "");
    this.save();
  }

  async loadPresets(): Promise<void> {
    this.presets = await api.list<Preset>("v1/presets");
  }

  async savePreset(preset: Preset): Promise<void> {
    await api.json("v1/presets", { body: preset });
    await this.loadPresets();
  }

  async removePreset(name: string): Promise<void> {
    await api.send(`v1/presets/${encodeURIComponent(name)}`, { method: "DELETE" });
    await this.loadPresets();
  }
}

function biases(text: string): Record<string, number> {
  const out: Record<string, number> = {};
  for (const line of text.split("\n").filter((l) => l.trim())) {
    const [id = "", bias = ""] = line.trim().split(/[\s:=]+/);
    if (!/^\d+$/.test(id) || Number.isNaN(Number(bias)) || bias === "") throw new Error(`Logit bias: "${line}" is not "token-id bias".`);
    out[id] = Number(bias);
  }
  return out;
}

function responseFormat(form: string, text: string): Record<string, unknown> {
  if (form === "json_object") return { type: form };
  if (form === "regex" || form === "grammar") return { type: form, [form]: text };
  try {
    return { type: "json_schema", json_schema: { name: "answer", schema: JSON.parse(text) as unknown } };
  } catch {
    throw new Error("Answer format: the JSON schema is not valid JSON.");
  }
}

export const settings = new Settings();
