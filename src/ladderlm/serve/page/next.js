// The next-token view: one or two prompts, and what each makes the model expect.

import { nextTokens } from "./api.js";
import { $, autogrow, h } from "./dom.js";
import { bar } from "./tokens.js";

const FIRST = "Listen to your";
const SECOND = "Listen to your doctor and follow your";
let model = () => "";
let panes = [];

export function setUp(chosenModel) {
  model = chosenModel;
  panes = [pane("Prompt", FIRST)];
  draw();
  $("next-k").addEventListener("change", refresh);
  $("next-second").addEventListener("click", () => {
    const second = panes.length === 1;
    panes = second ? [panes[0], pane("Second prompt", SECOND)] : [panes[0]];
    $("next-second").setAttribute("aria-pressed", String(second));
    draw();
    refresh();
  });
}

/** Asks again for every prompt: the view was opened, or the model or the length of the tables changed. */
export function refresh() {
  for (const each of panes) each.ask();
}

function draw() {
  $("next-panes").replaceChildren(...panes.map((each) => each.node));
  for (const each of panes) autogrow(each.area);
}

function pane(label, text) {
  const id = `next-${label.replace(/ /g, "-").toLowerCase()}`;
  const area = h("textarea", { id, rows: 3, spellcheck: "false" });
  const table = h("div", { class: "bars", role: "group", "aria-label": `Likeliest next tokens: ${label}` });
  const told = h("p", { class: "muted hint", role: "status" });
  let timer = 0, control = null;
  area.value = text;

  async function ask() {
    control?.abort();
    const mine = (control = new AbortController());
    told.textContent = "…";
    try {
      const tokens = await nextTokens(model(), area.value, Number($("next-k").value), mine.signal);
      const sum = tokens.reduce((total, token) => total + token.prob, 0);
      table.replaceChildren(...tokens.map((token) => bar(token.text, token.logprob, () => goOn(token.text))));
      told.textContent = `together ${(sum * 100).toFixed(1)} % of all that could come`;
    } catch (error) {
      if (error.name === "AbortError") return;
      table.replaceChildren();
      told.textContent = error.message;
    }
  }

  function goOn(token) {
    area.value += token;
    autogrow(area);
    ask();
  }

  area.addEventListener("input", () => {
    autogrow(area);
    clearTimeout(timer);
    timer = setTimeout(ask, 300);
  });
  const node = h("div", { class: "pane" }, h("label", { for: id, class: "pane-title" }, label), area, table, told);
  return { node, area, ask };
}
