// The key that this tab sends, and the dialog that asks for one when the server does.

const KEY = "ladderlm.key";

class Keys {
  asking = $state(false);
  refused = $state(false);
  value = read();
  #waiting: Promise<void> | null = null;
  #resolve = () => {};

  /** Resolves when a key other than `used` was given. */
  ask(used: string): Promise<void> {
    if (this.value !== used) return Promise.resolve();
    this.refused = used !== "";
    this.asking = true;
    this.#waiting ??= new Promise((resolve) => (this.#resolve = resolve));
    return this.#waiting;
  }

  give(key: string): void {
    this.value = key.trim();
    try {
      sessionStorage.setItem(KEY, this.value);
    } catch {
      // kept in memory alone
    }
    this.asking = false;
    this.#waiting = null;
    this.#resolve();
  }
}

function read(): string {
  try {
    return sessionStorage.getItem(KEY) ?? "";
  } catch {
    return "";
  }
}

export const keys = new Keys();
