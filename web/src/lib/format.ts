// Numbers and times as people say them.

export function bytes(count: number | null | undefined): string {
  if (count === null || count === undefined) return "–";
  for (const [unit, scale] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]] as const) {
    if (count >= scale) return `${(count / scale).toFixed(count >= 10 * scale ? 0 : 1)} ${unit}`;
  }
  return `${count} B`;
}

export function count(number: number | null | undefined): string {
  if (number === null || number === undefined) return "–";
  if (number >= 1e9) return `${(number / 1e9).toFixed(2)} B`;
  return number >= 1e5 ? `${(number / 1e6).toFixed(1)} M` : number.toLocaleString("en");
}

export function lasting(seconds: number): string {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
}

export function when(time: number | null | undefined): string {
  if (!time) return "–";
  return new Date(time * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
}

export function money(dollars: number): string {
  return dollars === 0 ? "$0" : `$${dollars < 0.01 ? dollars.toPrecision(2) : dollars.toFixed(2)}`;
}

export const day = 86_400;

/** "Today", "Yesterday", "Last 7 days", or a month. */
export function age(time: number, now = Date.now() / 1000): string {
  const midnight = new Date(now * 1000).setHours(0, 0, 0, 0) / 1000;
  if (time >= midnight) return "Today";
  if (time >= midnight - day) return "Yesterday";
  if (time >= midnight - 6 * day) return "Last 7 days";
  return new Date(time * 1000).toLocaleString("en", { month: "long", year: "numeric" });
}

export const speed = (value: number): string => `${value.toFixed(1)} tokens/s`;
