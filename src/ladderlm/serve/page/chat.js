// The chat view: the list of chats, the turns, and one answer being made at a time.

import { answer } from "./api.js";
import * as chats from "./chats.js";
import { $, autogrow, h, iconButton, notice, sendOnEnter } from "./dom.js";
import { copyText, markdown } from "./markdown.js";
import { sampling } from "./settings.js";
import { compact, pieces, shaded } from "./tokens.js";

const { current } = chats;
let all = chats.load();
let chat = all[0] ?? chats.fresh();
let model = () => "";
let running = null; // the AbortController of the answer in progress
let probabilities = localStorage.getItem("ladderlm.probabilities") === "1";

export function setUp(chosenModel) {
  model = chosenModel;
  const prompt = $("prompt");
  $("composer").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else ask(prompt.value);
  });
  sendOnEnter(prompt, () => !running && ask(prompt.value));
  prompt.addEventListener("input", () => autogrow(prompt));
  $("new-chat").addEventListener("click", () => open(chats.fresh()));
  $("system").addEventListener("input", () => {
    chat.system = $("system").value;
    keep();
  });
  $("toggle-probs").addEventListener("click", () => {
    probabilities = !probabilities;
    localStorage.setItem("ladderlm.probabilities", probabilities ? "1" : "0");
    draw();
  });
  open(chat);
}

/** Stops the answer in progress; says whether there was one. */
export function stop() {
  running?.abort();
  return running !== null;
}

function open(other) {
  stop();
  chat = other;
  $("system").value = chat.system;
  $("stats").textContent = "";
  $("side").classList.remove("shown");
  $("open-side").setAttribute("aria-expanded", "false");
  draw();
  toEnd();
  $("prompt").focus();
}

function keep() {
  all = [chat, ...all.filter((other) => other !== chat)].filter((c) => c.turns.length);
  chats.save(all);
}

function ask(text) {
  if (!text.trim()) return;
  chat.turns.push(chats.turnOf("user", text));
  $("prompt").value = "";
  autogrow($("prompt"));
  chat.turns.push({ role: "assistant", variants: [], active: -1 });
  generate(chat.turns.length - 1);
}

function regenerate(index) {
  chat.turns.length = index + 1;
  generate(index);
}

/** Goes on from token `at` of an answer with another candidate: what came before begins a new variant. */
function fork(index, at, candidate) {
  const kept = current(chat.turns[index]).tokens.slice(0, at);
  chat.turns.length = index + 1;
  generate(index, [...kept, candidate]);
}

/** Makes a new variant of the answer at `index`, which begins with the tokens `lead`. */
async function generate(index, lead = []) {
  stop();
  notice("");
  const mine = chat;
  const turn = mine.turns[index];
  const beginning = pieces(lead).join("");
  const variant = { text: beginning, tokens: lead, stats: "", model: model(), forked: lead.length ? lead.length - 1 : null };
  const before = turn.active;
  turn.variants.push(variant);
  turn.active = turn.variants.length - 1;
  const control = (running = new AbortController());
  const messages = chats.messagesOf(mine, mine.turns.slice(0, index));
  if (beginning) messages.push({ role: "assistant", content: beginning });
  draw();
  toEnd();
  const began = performance.now();
  let first = 0, count = 0, due = false, usage = null;
  const show = () => {
    due = false;
    if (chat !== mine || running !== control) return;
    const stuck = atEnd();
    $("messages").lastElementChild?.replaceWith(turnNode(mine.turns.length - 1));
    $("stats").textContent = count > 1 ? speed(count, performance.now() - first) : "";
    if (stuck) toEnd();
  };
  try {
    for await (const piece of answer(variant.model, messages, sampling(), control.signal)) {
      if (!first && piece.text) first = performance.now();
      variant.text += piece.text;
      variant.tokens.push(...piece.tokens.map(compact));
      count += piece.tokens.length || (piece.text ? 1 : 0);
      usage = piece.usage ?? usage;
      if (!due && piece.text) {
        due = true;
        requestAnimationFrame(show);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") notice(error.message);
  }
  const done = usage?.completion_tokens ?? count;
  variant.stats = `${variant.model} · ${done} tokens · ${speed(Math.max(1, done - 1), performance.now() - (first || began))}`;
  if (control.signal.aborted) variant.stats += " · stopped";
  if (!variant.text && !variant.tokens.length) {
    turn.variants.pop();
    turn.active = before;
    if (!turn.variants.length) mine.turns.splice(index, 1);
  }
  if (running === control) running = null;
  if (chat === mine) {
    mine.title = chats.titleOf(mine);
    keep();
    $("stats").textContent = "";
    const stuck = atEnd();
    draw();
    if (stuck) toEnd();
  } else chats.save(all);
}

const speed = (tokens, ms) => `${((tokens * 1000) / Math.max(1, ms)).toFixed(1)} tokens/s`;

// --- Drawing --------------------------------------------------------------------------------------------------------

function draw() {
  const place = $("messages");
  place.replaceChildren(...(chat.turns.length ? chat.turns.map((_, index) => turnNode(index)) : [welcome()]));
  place.setAttribute("aria-busy", String(running !== null));
  $("send").textContent = running ? "Stop" : "Send";
  $("send").classList.toggle("stop", running !== null);
  $("toggle-probs").setAttribute("aria-pressed", String(probabilities));
  document.title = chat.title ? `${chat.title} – LadderLM` : "LadderLM";
  drawList();
}

function drawList() {
  const rows = all.map((other) =>
    h("li", { class: other === chat ? "here" : false },
      h("button", { type: "button", class: "chat-link", "aria-current": other === chat ? "true" : false, onclick: () => open(other) }, other.title || chats.titleOf(other)),
      iconButton("remove", `Delete chat: ${other.title}`, () => remove(other))));
  $("chat-list").replaceChildren(...rows);
}

function remove(other) {
  all = all.filter((c) => c !== other);
  chats.save(all);
  if (other === chat) open(all[0] ?? chats.fresh());
  else drawList();
}

function welcome() {
  const tries = ["Why is the sky blue?", "Write a haiku about ladders.", "List three uses of a paper clip."];
  return h("div", { class: "welcome" },
    h("h1", {}, "Ask, and look inside"),
    h("p", {}, "Everything stays on this machine. Turn on ", h("em", {}, "Probabilities"), " to see how sure the model was of each token, and to fork an answer anywhere."),
    h("div", { class: "tries" }, tries.map((text) => h("button", { type: "button", class: "chip", onclick: () => ask(text) }, text))));
}

function turnNode(index) {
  const turn = chat.turns[index];
  const variant = current(turn);
  const busy = running !== null && index === chat.turns.length - 1;
  const isUser = turn.role === "user";
  const body = isUser ? h("div", { class: "said" }, variant.text) : answerBody(variant, index, busy);
  const tools = h("div", { class: "turn-tools" },
    iconButton("copy", "Copy", (event) => copyText(variant.text, event.currentTarget)),
    isUser && index >= chat.turns.length - 2 && iconButton("edit", "Edit", () => edit(index)),
    !isUser && index === chat.turns.length - 1 && iconButton("again", "Regenerate", () => regenerate(index)),
    !isUser && turn.variants.length > 1 && variants(turn),
    !isUser && h("span", { class: "muted stats" }, variant.stats));
  return h("article", { class: `turn ${turn.role}`, "aria-label": isUser ? "You" : "Answer" }, body, !busy && tools);
}

function answerBody(variant, index, busy) {
  if (busy && !variant.text) return h("div", { class: "thinking", role: "status" }, h("span", { class: "sr-only" }, "Waiting for the model"), h("i"), h("i"), h("i"));
  if (!probabilities) return h("div", { class: "prose" }, markdown(variant.text));
  if (!variant.tokens?.length) return h("div", { class: "prose" }, markdown(variant.text), h("p", { class: "muted hint" }, "No probabilities were told for this answer."));
  const last = index === chat.turns.length - 1;
  return h("div", {}, shaded(variant.tokens, variant.forked, last && !busy ? (at, candidate) => fork(index, at, candidate) : null), !busy && legend());
}

function legend() {
  const steps = ["expected", "", "", "", "surprising"];
  return h("div", { class: "legend muted", "aria-hidden": "true" }, h("span", {}, steps[0]), steps.map((_, i) => h("span", { class: `swatch token s${i}` })), h("span", {}, steps[4]));
}

function variants(turn) {
  const go = (step) => () => {
    turn.active += step;
    keep();
    draw();
  };
  return h("span", { class: "variants" },
    iconButton("left", "Previous answer", go(-1), { disabled: turn.active === 0 }),
    h("span", { class: "muted" }, `${turn.active + 1} / ${turn.variants.length}`),
    iconButton("right", "Next answer", go(1), { disabled: turn.active === turn.variants.length - 1 }));
}

function edit(index) {
  const area = h("textarea", { class: "edit", "aria-label": "Edit your message" });
  area.value = current(chat.turns[index]).text;
  const done = () => {
    if (!area.value.trim()) return;
    chat.turns.length = index;
    ask(area.value);
  };
  const box = h("div", { class: "edit-box" }, area, h("div", { class: "composer-row" }, h("span", { class: "grow" }),
    h("button", { type: "button", class: "chip", onclick: draw }, "Cancel"),
    h("button", { type: "button", class: "primary", onclick: done }, "Send")));
  sendOnEnter(area, done);
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      event.stopPropagation();
      draw();
    }
  });
  $("messages").children[index].replaceChildren(box);
  autogrow(area);
  area.focus();
}

function atEnd() {
  const place = $("messages");
  return place.scrollHeight - place.scrollTop - place.clientHeight < 80;
}

function toEnd() {
  const place = $("messages");
  place.scrollTop = place.scrollHeight;
}
