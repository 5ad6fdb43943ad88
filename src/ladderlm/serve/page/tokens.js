// Seeing inside: each token shaded by surprise, and a popover with what else the model would have said.

import { $, h } from "./dom.js";

/** A token of the API as this page keeps it: [text, logprob, [[text, logprob], ...], bytes when it is part of a character]. */
export function compact(token) {
  const kept = [token.token, round(token.logprob), token.top_logprobs.map((t) => [t.token, round(t.logprob)])];
  if (token.token.includes("\ufffd") && token.bytes) kept.push(token.bytes);
  return kept;
}

const round = (logprob) => Math.round(logprob * 1e4) / 1e4;

/** The text that each token adds; a character spread over several tokens appears with its last one. */
export function pieces(tokens) {
  const decoder = new TextDecoder();
  const encoder = new TextEncoder();
  return tokens.map(([text, , , bytes]) => decoder.decode(bytes ? Uint8Array.from(bytes) : encoder.encode(text), { stream: true }));
}

/** 0 (expected) to 4 (a surprise), by probability. */
export function level(logprob) {
  const p = Math.exp(logprob);
  return p > 0.8 ? 0 : p > 0.5 ? 1 : p > 0.2 ? 2 : p > 0.05 ? 3 : 4;
}

export function percent(logprob) {
  const p = Math.exp(logprob) * 100;
  return p >= 99.95 ? "100 %" : p >= 10 ? `${p.toFixed(1)} %` : p >= 0.1 ? `${p.toFixed(2)} %` : p >= 0.001 ? `${p.toFixed(3)} %` : "< 0.001 %";
}

/** A token's text made visible: spaces and line breaks show. */
export function visible(text) {
  return text.replace(/ /g, "·").replace(/\n/g, "↵").replace(/\t/g, "⇥") || "∅";
}

/**
 * The tokens as buttons in running text; the arrow keys walk along them. `forked` marks the token that was chosen by
 * hand. `fork(index, candidate)` goes on from there with another token; null forbids it.
 */
export function shaded(tokens, forked, fork) {
  const texts = pieces(tokens);
  const spans = tokens.map((token, index) => {
    const span = h("span", {
      class: `token s${level(token[1])}${index === forked ? " forked" : ""}`, role: "button", "aria-haspopup": "dialog",
      tabindex: index ? "-1" : "0",
      "aria-label": `${visible(token[0])}, ${percent(token[1])}`,
    }, texts[index]);
    const open = () => popover(span, token, fork && ((candidate) => fork(index, candidate)));
    span.addEventListener("click", open);
    span.addEventListener("keydown", (event) => {
      const other = { ArrowRight: spans[index + 1], ArrowLeft: spans[index - 1] }[event.key];
      if (other) {
        span.tabIndex = -1;
        other.tabIndex = 0;
        other.focus();
      } else if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open();
      }
    });
    return span;
  });
  return h("div", { class: "tokens" }, spans);
}

/** A bar for one candidate; `choose` makes it a button. */
export function bar(text, logprob, choose, { chosen = false, widest = 1 } = {}) {
  const fill = h("span", { class: "fill" });
  fill.style.width = `${Math.max(0.5, (Math.exp(logprob) / widest) * 100)}%`;
  const parts = [h("code", { class: "what" }, visible(text)), h("span", { class: "track" }, fill), h("span", { class: "share" }, percent(logprob))];
  const name = `${visible(text)}, ${percent(logprob)}`;
  if (!choose) return h("div", { class: `bar${chosen ? " chosen" : ""}` }, parts);
  return h("button", { type: "button", class: `bar${chosen ? " chosen" : ""}`, "aria-label": name, onclick: choose }, parts);
}

let opener = null;
let openedAt = 0;

export function closePopover() {
  const place = $("popover");
  if (place.hidden) return false;
  place.hidden = true;
  opener?.classList.remove("open");
  if (place.contains(document.activeElement)) opener?.focus({ preventScroll: true });
  opener = null;
  return true;
}

function popover(span, [text, logprob, top], fork) {
  closePopover();
  opener = span;
  openedAt = span.getBoundingClientRect().top;
  span.classList.add("open");
  const rows = top.some(([t]) => t === text) ? top : [...top, [text, logprob]];
  const bars = rows.map(([t, lp]) => {
    const chosen = t === text;
    const usable = fork && !chosen && !t.includes("\ufffd");
    return bar(t, lp, usable ? () => { closePopover(); fork([t, lp, rows]); } : null, { chosen });
  });
  const bits = (-logprob / Math.LN2).toFixed(2);
  const place = $("popover");
  place.replaceChildren(
    h("p", { class: "popover-head" }, h("code", {}, visible(text)), h("span", {}, `${percent(logprob)} · ${bits} bits of surprise`)),
    h("div", { class: "bars" }, bars),
    h("p", { class: "muted hint", hidden: !fork }, "Choose another token to go on from here."),
  );
  place.hidden = false;
  const at = span.getClientRects()[0] ?? span.getBoundingClientRect();
  const { width, height } = place.getBoundingClientRect();
  const below = at.bottom + height + 12 < window.innerHeight;
  place.style.left = `${Math.max(8, Math.min(at.left, window.innerWidth - width - 8))}px`;
  place.style.top = `${Math.max(8, below ? at.bottom + 6 : at.top - height - 6)}px`;
  (place.querySelector("button") ?? span).focus({ preventScroll: true });
}

document.addEventListener("pointerdown", (event) => {
  if (!$("popover").contains(event.target) && !event.target.closest?.(".token")) closePopover();
});
document.addEventListener("scroll", () => {
  if (opener && Math.abs(opener.getBoundingClientRect().top - openedAt) > 4) closePopover();
}, true);
