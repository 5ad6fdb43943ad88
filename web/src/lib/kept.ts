// What this browser remembers between visits: small choices only; chats are the server's.

export function kept<T>(name: string, otherwise: T): T {
  try {
    const found = localStorage.getItem(`ladderlm.${name}`);
    return found === null ? otherwise : (JSON.parse(found) as T);
  } catch {
    return otherwise;
  }
}

export function keep(name: string, value: unknown): void {
  try {
    localStorage.setItem(`ladderlm.${name}`, JSON.stringify(value));
  } catch {
    // a browser that keeps nothing works all the same
  }
}
