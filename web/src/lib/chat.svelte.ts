// One chat: the branch that is shown of its tree, and one answer being made at a time. The tree itself is the server's.

import * as api from "./api";
import { app } from "./app.svelte";
import { history } from "./history.svelte";
import { newId } from "./id";
import { shown } from "./images";
import { kept } from "./kept";
import { settings } from "./sampling.svelte";
import { pieces } from "./tokens";
import type { Attachment, ChatEntry, MessageEntry, Part, Spoken, Timings, Token } from "./types";

const PAGE = 100;

/** A message on the branch that is shown. */
export class Turn {
  readonly id: string;
  readonly parent: string | null;
  readonly role: "user" | "assistant";
  content = $state("");
  reasoning = $state("");
  tokens = $state.raw<Token[] | null>(null);
  timings = $state.raw<Timings | null>(null);
  finish = $state("");
  siblings = $state.raw<string[]>([]);
  forked = $state<number | null>(null);
  model = "";
  sampling: Record<string, unknown> = {};
  attachments: Attachment[] = [];
  hasTokens = false;

  constructor(role: "user" | "assistant", parent: string | null, id = newId("msg")) {
    this.role = role;
    this.parent = parent;
    this.id = id;
    this.siblings = [id];
  }

  static of(entry: MessageEntry): Turn {
    const turn = new Turn(entry.role, entry.parent, entry.id);
    turn.content = entry.content;
    turn.reasoning = entry.reasoning ?? "";
    turn.timings = entry.timings ?? null;
    turn.forked = entry.timings?.forked ?? null;
    turn.finish = entry.finish ?? "";
    turn.siblings = entry.siblings;
    turn.model = entry.model ?? "";
    turn.sampling = entry.sampling ?? {};
    turn.attachments = entry.attachments ?? [];
    turn.hasTokens = entry.has_tokens ?? false;
    return turn;
  }

  /** What the server keeps of it. */
  get entry(): Record<string, unknown> {
    const timings = this.timings && { ...this.timings, ...(this.forked !== null && { forked: this.forked }) };
    const said = this.role === "assistant" && { model: this.model, sampling: this.sampling };
    const told = { reasoning: this.reasoning || null, timings, finish: this.finish || null };
    const { id, parent, role, content } = this;
    return { id, parent, role, content, ...told, ...said, attachments: this.attachments.length ? this.attachments : null };
  }

  get place(): number {
    return this.siblings.indexOf(this.id);
  }

  get images(): string[] {
    return this.attachments.map(shown).filter((image) => image !== undefined);
  }

  /** What the model reads: files first, each under its name; then what it sees. */
  get spoken(): Spoken {
    const files = this.attachments.filter((a) => !a.image).map((a) => `File ${a.name}:\n\`\`\`\n${a.text}\n\`\`\`\n\n`).join("");
    const text = files + this.content;
    if (!this.images.length) return { role: this.role, content: text };
    const said: Part[] = text ? [{ type: "text", text }] : [];
    return { role: this.role, content: [...said, ...this.images.map((url): Part => ({ type: "image_url", image_url: { url } }))] };
  }
}

export class Chat {
  id = $state("");
  title = $state("");
  folder = $state("");
  system = $state("");
  turns = $state.raw<Turn[]>([]);
  more = $state(false);
  busy = $state(false);
  loading = $state(false);
  /** Tokens a second of the answer in progress. */
  pace = $state(0);
  #control: AbortController | null = null;
  #saving: Promise<unknown> = Promise.resolve();

  get last(): Turn | undefined {
    return this.turns.at(-1);
  }

  stop(): boolean {
    this.#control?.abort();
    return this.busy;
  }

  // --- From and to the server ---------------------------------------------------------------------------------------

  async load(id: string): Promise<void> {
    this.id = id;
    this.loading = true;
    try {
      const entry = await api.json<ChatEntry>(`v1/chats/${id}`);
      this.title = entry.title;
      this.folder = entry.folder;
      this.system = entry.system;
      await this.#page(null);
    } finally {
      this.loading = false;
    }
  }

  async #page(before: Turn | null): Promise<number> {
    const query = `limit=${before ? 500 : PAGE}${before ? `&before=${before.id}` : ""}`;
    const page = await api.json<{ data: MessageEntry[]; has_more: boolean }>(`v1/chats/${this.id}/messages?${query}`);
    const turns = page.data.map(Turn.of);
    this.turns = before ? [...turns, ...this.turns] : turns;
    this.more = page.has_more;
    return turns.length;
  }

  /** Loads turns above the first one; says how many came. */
  async earlier(): Promise<number> {
    const first = this.turns[0];
    if (!this.more || this.loading || !first) return 0;
    this.loading = true;
    try {
      return await this.#page(first);
    } finally {
      this.loading = false;
    }
  }

  async #whole(): Promise<void> {
    while (this.more) if (!(await this.earlier())) await new Promise((resolve) => setTimeout(resolve, 30));
  }

  /** One after another, in the order they were asked for. */
  #queue(work: () => Promise<unknown>): Promise<unknown> {
    this.#saving = this.#saving.then(work).catch((error: unknown) => app.tell(`Not saved: ${api.wrong(error)}`));
    return this.#saving;
  }

  #keep(turn: Turn, closing = false): void {
    const body: Record<string, unknown> = { ...turn.entry };
    if (!closing && turn.tokens?.length && kept("keepTokens", true)) body["tokens"] = turn.tokens;
    const put = () => api.send(`v1/chats/${this.id}/messages`, { body, keepalive: closing });
    void (closing ? put().catch(() => {}) : this.#queue(put));
  }

  async #exist(title: string): Promise<void> {
    if (this.id) return;
    const entry = await api.json<ChatEntry>("v1/chats", { body: { title, system: this.system, folder: this.folder } });
    this.id = entry.id;
    this.title = entry.title;
    app.settle("chat", entry.id);
    history.put(entry);
  }

  update(fields: Partial<Pick<ChatEntry, "title" | "folder" | "system">>): void {
    Object.assign(this, fields);
    if (this.id) void this.#queue(() => history.update(this.id, fields));
  }

  /** The kept probabilities of an answer. */
  async tokens(turn: Turn): Promise<void> {
    if (turn.tokens || !turn.hasTokens) return;
    turn.tokens = [];
    const path = `v1/chats/${this.id}/messages/${turn.id}/tokens`;
    turn.tokens = (await api.json<{ tokens: Token[] }>(path)).tokens;
  }

  // --- What a person does ---------------------------------------------------------------------------------------------

  async send(text: string, attachments: Attachment[] = []): Promise<void> {
    if (!text.trim() && !attachments.length) return;
    await this.#say(this.turns.length, text, attachments);
  }

  /** Another wording of the question at `index`: a branch of its own. */
  async edit(index: number, text: string): Promise<void> {
    const old = this.turns[index];
    if (!old || !text.trim()) return;
    await this.#whole();
    await this.#say(this.turns.indexOf(old), text, old.attachments, old.siblings);
  }

  async #say(index: number, text: string, attachments: Attachment[], siblings: string[] = []): Promise<void> {
    this.stop();
    try {
      const title = (text.trim() || attachments[0]?.name || "").replace(/\s+/g, " ").slice(0, 60);
      await this.#exist(title);
    } catch (error) {
      app.tell(api.wrong(error));
      return;
    }
    const turn = new Turn("user", this.turns[index - 1]?.id ?? null);
    turn.content = text;
    turn.attachments = attachments;
    turn.siblings = [...siblings, turn.id];
    this.turns = [...this.turns.slice(0, index), turn];
    this.#keep(turn);
    await this.#answer();
  }

  async regenerate(index: number): Promise<void> {
    await this.#again(index, []);
  }

  /** Goes on from token `at` of an answer with another candidate: what came before begins a new answer. */
  async fork(index: number, at: number, candidate: Token): Promise<void> {
    const tokens = this.turns[index]?.tokens ?? [];
    await this.#again(index, [...tokens.slice(0, at), candidate]);
  }

  async #again(index: number, lead: Token[]): Promise<void> {
    const old = this.turns[index];
    if (!old) return;
    this.stop();
    await this.#whole();
    this.turns = this.turns.slice(0, this.turns.indexOf(old));
    await this.#answer({ siblings: old.siblings, lead });
  }

  /** Goes on where the last answer ended. */
  async proceed(): Promise<void> {
    const last = this.last;
    if (last?.role === "assistant" && !this.busy) await this.#answer({ on: last });
  }

  /** Shows the next or the previous of an answer's or a question's siblings, with what follows it. */
  async sibling(turn: Turn, step: number): Promise<void> {
    const other = turn.siblings[turn.place + step];
    if (!other || this.busy) return;
    await this.show(other);
  }

  /** The branch through a message. */
  async show(message: string): Promise<void> {
    await this.#saving;
    const known = this.turns.length;
    await api.json(`v1/chats/${this.id}`, { method: "PATCH", body: { leaf: message } });
    await this.#page(null);
    while (this.more && this.turns.length < known) await this.earlier();
  }

  // --- An answer ------------------------------------------------------------------------------------------------------

  async #answer({ siblings = [] as string[], lead = [] as Token[], on = null as Turn | null } = {}): Promise<void> {
    let sampling;
    try {
      sampling = settings.sent;
    } catch (error) {
      app.tell(api.wrong(error));
      app.settings = true;
      return;
    }
    app.tell("");
    const control = (this.#control = new AbortController());
    this.busy = true;
    const turn = on ?? new Turn("assistant", this.last?.id ?? null);
    const beginning = on ? on.content : pieces(lead).join("");
    const tokens = on ? [...(on.tokens ?? [])] : [...lead];
    if (!on) {
      turn.siblings = [...siblings, turn.id];
      turn.model = app.model;
      turn.sampling = sampling;
      turn.content = beginning;
      turn.tokens = tokens;
      turn.forked = lead.length ? lead.length - 1 : null;
      this.turns = [...this.turns, turn];
    }
    await this.#whole();
    const before = this.turns.slice(0, this.turns.indexOf(turn)).map((t) => t.spoken);
    if (this.system.trim()) before.unshift({ role: "system", content: this.system });
    if (beginning) before.push({ role: "assistant", content: beginning });
    const made = new Making(turn, tokens, on?.timings ?? null, (pace) => (this.pace = pace));
    const leaving = () => this.#keep(turn, true);
    addEventListener("pagehide", leaving);
    try {
      for await (const piece of api.answer(turn.model, before, sampling, control.signal)) made.add(piece);
      made.end(false);
    } catch (error) {
      if (!api.aborted(error)) app.tell(api.wrong(error));
      made.end(api.aborted(error));
    }
    removeEventListener("pagehide", leaving);
    if (this.#control === control) {
      this.#control = null;
      this.busy = false;
      this.pace = 0;
    }
    if (turn.content || turn.tokens?.length || turn.reasoning) {
      turn.hasTokens = !!turn.tokens?.length;
      this.#keep(turn);
      history.touch(this.id);
    } else if (!on) await this.#unmade(turn, siblings);
  }

  /** Nothing came: what was shown before comes back. */
  async #unmade(turn: Turn, siblings: string[]): Promise<void> {
    this.turns = this.turns.filter((t) => t !== turn);
    const old = siblings.at(-1);
    if (old) await this.show(old).catch(() => {});
  }
}

/** An answer as it grows, drawn once a frame. */
class Making {
  #text: string;
  #reasoning = "";
  #count = 0;
  #first = 0;
  #due = false;
  #began = performance.now();
  #usage: api.Usage | null = null;

  constructor(
    private readonly turn: Turn,
    private readonly tokens: Token[],
    private readonly earlier: Timings | null,
    private readonly tell: (pace: number) => void,
  ) {
    this.#text = turn.content;
  }

  add(piece: api.Piece): void {
    if (!this.#first && (piece.text || piece.reasoning)) this.#first = performance.now();
    this.#text += piece.text;
    this.#reasoning += piece.reasoning;
    this.tokens.push(...piece.tokens);
    this.#count += piece.tokens.length || (piece.text || piece.reasoning ? 1 : 0);
    this.#usage = piece.usage ?? this.#usage;
    if (piece.finish) this.turn.finish = piece.finish;
    if (!this.#due) {
      this.#due = true;
      requestAnimationFrame(() => this.#show());
    }
  }

  #show(): void {
    if (!this.#due) return;
    this.#due = false;
    this.turn.content = this.#text;
    if (this.#reasoning) this.turn.reasoning = this.#reasoning;
    this.turn.tokens = [...this.tokens];
    if (this.#count > 2) this.tell((1000 * (this.#count - 1)) / Math.max(1, performance.now() - this.#first));
  }

  end(stopped: boolean): void {
    this.#due = true;
    this.#show();
    if (stopped) this.turn.finish = "stopped";
    const now = performance.now();
    const tokens = this.#usage?.completion_tokens ?? this.#count;
    const first = this.#first || now;
    const seconds = Math.max(1, now - first) / 1000;
    const cost = this.#usage?.cost ?? priced(this.turn.model, this.#usage);
    this.turn.timings = {
      model: this.turn.model,
      tokens: tokens + (this.earlier?.tokens ?? 0),
      first_ms: Math.round(first - this.#began),
      total_ms: Math.round(now - this.#began) + (this.earlier?.total_ms ?? 0),
      tokens_per_second: Math.round((10 * Math.max(1, tokens - 1)) / seconds) / 10,
      ...(this.#usage && { prompt_tokens: this.#usage.prompt_tokens }),
      ...(this.#usage?.prompt_tokens_details?.cached_tokens && { cached_tokens: this.#usage.prompt_tokens_details.cached_tokens }),
      ...(cost !== undefined && { cost: cost + (this.earlier?.cost ?? 0) }),
    };
  }
}

/** What an answer cost, where the model's price is known. */
function priced(name: string, usage: api.Usage | null): number | undefined {
  const price = app.models.find((m) => m.id === name)?.pricing;
  if (!price || !usage) return undefined;
  return usage.prompt_tokens * Number(price.prompt ?? 0) + usage.completion_tokens * Number(price.completion ?? 0);
}
