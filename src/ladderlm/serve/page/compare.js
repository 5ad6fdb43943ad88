// The compare view: one prompt to two or three models, each in its column.

import { answer } from "./api.js";
import { $, autogrow, h, sendOnEnter } from "./dom.js";
import { markdown } from "./markdown.js";
import { sampling } from "./settings.js";

let columns = [];
let known = [];
let running = null;

export function setUp() {
  const prompt = $("compare-prompt");
  columns = [column(0), column(1)];
  draw();
  $("compare-form").addEventListener("submit", (event) => {
    event.preventDefault();
    if (running) stop();
    else askAll(prompt.value);
  });
  sendOnEnter(prompt, () => !running && askAll(prompt.value));
  prompt.addEventListener("input", () => autogrow(prompt));
  $("compare-third").addEventListener("click", () => {
    const third = columns.length === 2;
    columns = third ? [...columns, column(2)] : columns.slice(0, 2);
    $("compare-third").setAttribute("aria-pressed", String(third));
    draw();
    offer(known);
  });
}

export function stop() {
  running?.abort();
  return running !== null;
}

/** The models to choose from; choices that still exist stay. */
export function offer(names) {
  known = names;
  columns.forEach((each, index) => {
    const chosen = each.pick.value;
    each.pick.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
    each.pick.value = names.includes(chosen) ? chosen : (names[index] ?? names[0] ?? "");
  });
}

function draw() {
  $("compare-columns").replaceChildren(...columns.map((each) => each.node));
}

function column(index) {
  const pick = h("select", { "aria-label": `Model of column ${index + 1}` });
  const said = h("div", { class: "prose", "aria-live": "off" }, h("p", { class: "muted" }, "Its answer appears here."));
  const stats = h("p", { class: "muted stats", role: "status" });
  return { pick, said, stats, node: h("div", { class: "pane" }, pick, said, stats) };
}

async function askAll(text) {
  if (!text.trim()) return;
  const control = (running = new AbortController());
  $("compare-send").textContent = "Stop";
  const system = $("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: text }];
  await Promise.all(columns.map((each) => askOne(each, messages, control.signal)));
  if (running === control) running = null;
  $("compare-send").textContent = "Ask all";
}

async function askOne({ pick, said, stats }, messages, signal) {
  let text = "", first = 0, count = 0, due = false;
  const began = performance.now();
  const show = () => {
    due = false;
    said.replaceChildren(markdown(text));
  };
  said.replaceChildren(h("p", { class: "muted" }, "…"));
  stats.textContent = "";
  try {
    for await (const piece of answer(pick.value, messages, sampling(), signal)) {
      if (piece.text && !first) first = performance.now();
      text += piece.text;
      count = piece.usage?.completion_tokens ?? count + piece.tokens.length;
      if (piece.text && !due) {
        due = true;
        requestAnimationFrame(show);
      }
    }
  } catch (error) {
    if (error.name !== "AbortError") {
      said.replaceChildren(h("p", { class: "wrong" }, error.message));
      return;
    }
  }
  show();
  const now = performance.now();
  const wait = ((first || now) - began) / 1000;
  const speed = (Math.max(1, count - 1) * 1000) / Math.max(1, now - (first || began));
  stats.textContent = `${count} tokens · first after ${wait.toFixed(2)} s · ${speed.toFixed(1)} tokens/s`;
}
