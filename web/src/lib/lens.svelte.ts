// The token that is looked into: one popover for the whole page.

import type { Token } from "./types";

export interface Looked {
  at: HTMLElement;
  token: Token;
  /** Goes on from here with another token; null where that cannot be. */
  fork: ((candidate: Token) => void) | null;
  /** Opened on purpose, not by hovering. */
  pinned: boolean;
}

class Lens {
  shown = $state.raw<Looked | null>(null);
  #timer = 0;

  pin(looked: Omit<Looked, "pinned">): void {
    clearTimeout(this.#timer);
    this.shown = { ...looked, pinned: true };
  }

  hover(looked: Omit<Looked, "pinned">): void {
    if (this.shown?.pinned) return;
    clearTimeout(this.#timer);
    this.#timer = window.setTimeout(() => (this.shown = { ...looked, pinned: false }), 180);
  }

  leave(): void {
    clearTimeout(this.#timer);
    if (this.shown && !this.shown.pinned) this.#timer = window.setTimeout(() => this.shown && !this.shown.pinned && (this.shown = null), 200);
  }

  stay(): void {
    clearTimeout(this.#timer);
  }

  close(): boolean {
    clearTimeout(this.#timer);
    const open = this.shown?.pinned ?? false;
    if (open) this.shown?.at.focus({ preventScroll: true });
    this.shown = null;
    return open;
  }
}

export const lens = new Lens();
