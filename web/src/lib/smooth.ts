/** A curve without its noise: an exponential mean, freed of its bias towards the start. */
export function smooth(values: readonly number[], weight: number): number[] {
  let mean = 0;
  let seen = 0;
  return values.map((value) => {
    if (!Number.isFinite(value)) return value;
    mean = weight * mean + (1 - weight) * value;
    seen += 1;
    return mean / (1 - weight ** seen);
  });
}

/** Round numbers between two values. */
export function ticks(low: number, high: number, about = 4): number[] {
  const span = high - low;
  if (!(span > 0)) return [low];
  const raw = span / about;
  const scale = 10 ** Math.floor(Math.log10(raw));
  const step = scale * ([1, 2, 2.5, 5, 10].find((m) => m * scale >= raw) ?? 10);
  const out = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-9; at += step) out.push(Math.abs(at) < step * 1e-9 ? 0 : at);
  return out;
}
