// The list of chats, page by page from the server, and the chats whose answers are still being made.

import * as api from "./api";
import type { ChatEntry } from "./types";

const PAGE = 60;

type Exported = { object: string; format: number; chats: unknown[] };

/** What an exported file holds. */
function exported(text: string): Exported {
  try {
    const file = JSON.parse(text) as Exported | null;
    if (file?.object === "ladderlm.chats" && Array.isArray(file.chats)) return file;
  } catch {
    // not JSON at all
  }
  throw new Error("This is not a file of exported chats.");
}

class History {
  chats = $state.raw<ChatEntry[]>([]);
  more = $state(false);
  loaded = $state(false);
  #loading = false;

  get folders(): string[] {
    return [...new Set(this.chats.map((c) => c.folder).filter(Boolean))].sort();
  }

  async load(): Promise<void> {
    this.chats = [];
    await this.next();
    this.loaded = true;
  }

  async next(): Promise<void> {
    if (this.#loading) return;
    this.#loading = true;
    try {
      const last = this.chats.at(-1);
      const query = `limit=${PAGE}${last ? `&before=${last.updated}` : ""}`;
      const page = await api.json<{ data: ChatEntry[]; has_more: boolean }>(`v1/chats?${query}`);
      const known = new Set(this.chats.map((c) => c.id));
      this.chats = [...this.chats, ...page.data.filter((c) => !known.has(c.id))];
      this.more = page.has_more;
    } finally {
      this.#loading = false;
    }
  }

  put(entry: ChatEntry): void {
    this.chats = [entry, ...this.chats.filter((c) => c.id !== entry.id)];
  }

  touch(id: string): void {
    const found = this.chats.find((c) => c.id === id);
    if (found) this.put({ ...found, updated: Date.now() / 1000 });
  }

  async update(id: string, fields: Partial<ChatEntry>): Promise<void> {
    const entry = await api.json<ChatEntry>(`v1/chats/${id}`, { method: "PATCH", body: fields });
    this.chats = this.chats.map((c) => (c.id === id ? entry : c));
  }

  async remove(id: string): Promise<void> {
    await api.send(`v1/chats/${id}`, { method: "DELETE" });
    this.chats = this.chats.filter((c) => c.id !== id);
  }

  /** Adds the chats of an exported file, in requests that the server takes. */
  async add(text: string): Promise<number> {
    const file = exported(text);
    let count = 0;
    let batch: unknown[] = [];
    let size = 0;
    const flush = async () => {
      if (batch.length) count += (await api.json<{ chats: number }>("v1/chats/import", { body: { format: file.format, chats: batch } })).chats;
      batch = [];
      size = 0;
    };
    for (const chat of file.chats) {
      const length = JSON.stringify(chat).length;
      if (size + length > 1_000_000) await flush();
      batch.push(chat);
      size += length;
    }
    await flush();
    await this.load();
    return count;
  }
}

export const history = new History();
