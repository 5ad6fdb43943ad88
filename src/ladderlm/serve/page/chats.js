// The chats, kept in this browser.
//
// A chat: {id, title, system, turns}. A turn: {role, variants: [variant], active}; a variant: {text, tokens, stats}.
// A token: [text, logprob, [[text, logprob], ...]]: short, because the browser's storage is.

const KEY = "ladderlm.chats";

export function load() {
  try {
    const chats = JSON.parse(localStorage.getItem(KEY));
    return Array.isArray(chats) ? chats : [];
  } catch {
    return [];
  }
}

/** Saves; when the storage is full, first the token tables of old chats go, then the oldest chats. */
export function save(chats) {
  const kept = structuredClone(chats.filter((chat) => chat.turns.length));
  for (;;) {
    try {
      localStorage.setItem(KEY, JSON.stringify(kept));
      return;
    } catch {
      const heavy = kept.findLast((chat) => chat.turns.some((turn) => turn.variants.some((v) => v.tokens?.length)));
      if (heavy) for (const turn of heavy.turns) for (const variant of turn.variants) variant.tokens = [];
      else if (kept.length) kept.pop();
      else return;
    }
  }
}

export function fresh() {
  return { id: crypto.randomUUID?.() ?? String(Math.random()), title: "", system: "", turns: [] };
}

export const current = (turn) => turn.variants[turn.active];

/** A turn with one variant. */
export function turnOf(role, text) {
  return { role, variants: [{ text, tokens: [] }], active: 0 };
}

/** What the API wants to see. */
export function messagesOf(chat, turns) {
  const said = turns.map((turn) => ({ role: turn.role, content: current(turn).text }));
  return chat.system.trim() ? [{ role: "system", content: chat.system }, ...said] : said;
}

export function titleOf(chat) {
  const first = chat.turns.find((turn) => turn.role === "user");
  return first ? current(first).text.trim().replace(/\s+/g, " ").slice(0, 60) : "New chat";
}
