export interface Run {
  id: string;
  kind: string;
  created: number;
  updated: number | null;
  state: "running" | "finished" | "stopped";
  model: string;
  out: string;
  data: string;
  steps: number | null;
  last: Record<string, unknown> | null;
  verdict: string;
}

export interface WholeRun extends Run {
  config: { settings?: Record<string, unknown> };
  result: Record<string, unknown> | null;
  report: string;
}

export interface Job {
  id: string;
  model: string;
  status: string;
  created_at: number;
  run?: string | null;
  error?: { message: string } | null;
}

export type Row = Record<string, unknown>;

/** Curves in the order in which they are looked at. */
const FIRST = ["loss", "held_out_loss", "reward", "reward_accuracy", "margin", "kl", "entropy", "length"];
const LAST = ["lr", "grad_norm", "tokens_per_second", "mfu"];
const BESIDE = ["step", "tokens", "seconds"];

export function curves(rows: readonly Row[]): { name: string; points: { x: number; y: number }[] }[] {
  const names = new Set(rows.flatMap((row) => Object.keys(row).filter((name) => typeof row[name] === "number")));
  for (const name of BESIDE) names.delete(name);
  const rank = (name: string) => (FIRST.includes(name) ? FIRST.indexOf(name) : LAST.includes(name) ? 100 + LAST.indexOf(name) : 50);
  return [...names]
    .sort((a, b) => rank(a) - rank(b))
    .map((name) => ({
      name: name.replaceAll("_", " "),
      points: rows.filter((row) => typeof row[name] === "number").map((row, i) => ({ x: Number(row["step"] ?? i), y: Number(row[name]) })),
    }));
}
