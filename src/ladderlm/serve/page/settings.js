// How tokens are drawn: the controls and what they mean. An untouched control sends nothing: the model's own setting holds.

import { $, h } from "./dom.js";

const KEY = "ladderlm.sampling";
const CONTROLS = [
  { name: "temperature", label: "Temperature", hint: "0 always takes the likeliest token", min: 0, max: 2, step: 0.05, shown: 0.7 },
  { name: "top_p", label: "Top p", hint: "the likeliest tokens that sum to this", min: 0.05, max: 1, step: 0.05, shown: 0.95 },
  { name: "min_p", label: "Min p", hint: "at least this share of the likeliest token's probability", min: 0, max: 0.5, step: 0.01, shown: 0 },
  { name: "top_k", label: "Top k", hint: "only this many likeliest tokens; 0 is off", number: true, min: 0, max: 1000 },
  { name: "max_tokens", label: "Max tokens", hint: "an answer's length at most", number: true, min: 1, max: 100000, shown: 1024 },
  { name: "seed", label: "Seed", hint: "the same seed draws the same answer", number: true, min: 0, max: 2 ** 31 },
];

let values = {};

/** What is sent; a small model may never stop by itself, so the length has a default of its own. */
export const sampling = () => ({ max_tokens: 1024, ...values });

export function setUp() {
  try {
    values = JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    values = {};
  }
  draw();
  $("reset-sampling").addEventListener("click", () => {
    values = {};
    keep();
    draw();
  });
}

function keep() {
  localStorage.setItem(KEY, JSON.stringify(values));
}

function draw() {
  $("sampling").replaceChildren(...CONTROLS.map((control) => (control.number ? number(control) : slider(control))));
}

function slider({ name, label, hint, min, max, step, shown }) {
  const told = h("output", { for: `s-${name}` });
  const tell = () => {
    told.textContent = values[name] === undefined ? "model's own" : String(values[name]);
  };
  const input = h("input", {
    id: `s-${name}`, type: "range", min, max, step, value: values[name] ?? shown, "aria-describedby": `h-${name}`,
    oninput: () => {
      values[name] = Number(input.value);
      keep();
      tell();
    },
  });
  tell();
  return h("div", { class: "field" }, h("label", { for: `s-${name}` }, label), told, input, h("small", { id: `h-${name}` }, hint));
}

function number({ name, label, hint, min, max, shown }) {
  const input = h("input", {
    id: `s-${name}`, type: "number", min, max, step: 1, inputmode: "numeric", placeholder: shown ?? "–", value: values[name] ?? "",
    "aria-describedby": `h-${name}`,
    oninput: () => {
      if (input.value === "" || !input.validity.valid) delete values[name];
      else values[name] = Number(input.value);
      keep();
    },
  });
  return h("div", { class: "field line" }, h("label", { for: `s-${name}` }, label), input, h("small", { id: `h-${name}` }, hint));
}
