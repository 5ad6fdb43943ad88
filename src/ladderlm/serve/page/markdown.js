// A small part of Markdown as DOM nodes: headings, paragraphs, lists, quotes, code, bold, italics, links.
// No HTML, no images. A link shows where it leads and goes to http(s) only.

import { h } from "./dom.js";

/** The blocks of `text` as a fragment. */
export function markdown(text) {
  const fragment = document.createDocumentFragment();
  const lines = text.replace(/\r\n?/g, "\n").split("\n");
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = /^\s{0,3}(```+|~~~+)\s*([\w+#.-]*)/.exec(line);
    if (!line.trim()) {
      at += 1;
    } else if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      fragment.append(codeBlock(lines.slice(at + 1, end).join("\n"), fence[2]));
      at = end + 1;
    } else if (/^#{1,6}\s/.test(line)) {
      const level = Math.min(6, /^#+/.exec(line)[0].length + 2); // below the page's own headings
      fragment.append(h(`h${level}`, {}, ...inline(line.replace(/^#+\s+/, "").replace(/\s+#+\s*$/, ""))));
      at += 1;
    } else if (/^\s*([-*_])(\s*\1){2,}\s*$/.test(line)) {
      fragment.append(h("hr"));
      at += 1;
    } else if (ITEM.test(line)) {
      at = list(lines, at, fragment);
    } else if (/^\s*>/.test(line)) {
      let end = at;
      while (end < lines.length && /^\s*>/.test(lines[end])) end += 1;
      const inside = lines.slice(at, end).map((l) => l.replace(/^\s*>\s?/, ""));
      fragment.append(h("blockquote", {}, markdown(inside.join("\n"))));
      at = end;
    } else {
      let end = at + 1;
      while (end < lines.length && lines[end].trim() && !STARTS.test(lines[end])) end += 1;
      fragment.append(h("p", {}, ...inline(lines.slice(at, end).join("\n"))));
      at = end;
    }
  }
  return fragment;
}

const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])\s+(.*)$/;
const STARTS = /^\s{0,3}(```|~~~|#{1,6}\s|>|[-*+]\s|\d{1,9}[.)]\s)/;

/** A list from line `at`, nested by indentation; returns the line after it. */
function list(lines, at, parent) {
  const [, indent, mark] = ITEM.exec(lines[at]);
  const ordered = /\d/.test(mark);
  const element = h(ordered ? "ol" : "ul", { start: ordered && parseInt(mark, 10) !== 1 && parseInt(mark, 10) });
  parent.append(element);
  let item = null;
  while (at < lines.length) {
    const found = ITEM.exec(lines[at]);
    if (found && found[1].length < indent.length) break;
    if (found && found[1].length > indent.length + 1 && item) {
      at = list(lines, at, item);
    } else if (found && /\d/.test(found[2]) === ordered) {
      item = h("li", {}, ...inline(found[3]));
      element.append(item);
      at += 1;
    } else if (!found && lines[at].trim() && /^\s/.test(lines[at]) && item) {
      item.append(" ", ...inline(lines[at].trim())); // the item goes on
      at += 1;
    } else if (!lines[at].trim() && ITEM.test(lines[at + 1] ?? "")) {
      at += 1; // a blank line between items
    } else break;
  }
  return at;
}

function codeBlock(code, language) {
  const copy = h("button", { type: "button", class: "chip copy-code" }, "Copy");
  copy.addEventListener("click", () => copyText(code, copy));
  return h("figure", { class: "code" }, h("figcaption", {}, h("span", {}, language || "code"), copy), h("pre", { tabindex: "0" }, h("code", {}, code)));
}

/** Copies and says so on the button. */
export async function copyText(text, button) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else copyOverSelection(text);
  const was = button.getAttribute("aria-label");
  button.classList.add("done");
  button.setAttribute("aria-label", "Copied");
  setTimeout(() => {
    button.classList.remove("done");
    if (was) button.setAttribute("aria-label", was);
    else button.removeAttribute("aria-label");
  }, 1200);
}

/** On plain http from another machine browsers offer no clipboard: an unseen selection still copies. */
function copyOverSelection(text) {
  const area = h("textarea", { class: "sr-only" });
  area.value = text;
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}

const INLINE = /(`+)([\s\S]+?)\1(?!`)|\*\*(?=\S)([\s\S]+?)\*\*|__(?=\S)([\s\S]+?)__(?!\w)|\*(?=[^\s*])([^*\n]+?)\*|(?<!\w)_(?=[^\s_])([^_\n]+?)_(?!\w)|!?\[([^\]\n]*)\]\(([^\s)]+)(?:\s+"[^"\n]*")?\)/;

/** Text with inline marks as nodes. */
export function inline(text) {
  const nodes = [];
  for (;;) {
    const found = INLINE.exec(text);
    if (!found) break;
    if (found.index) nodes.push(text.slice(0, found.index));
    const [whole, , code, bold, bold2, soft, soft2, label, href] = found;
    if (code !== undefined) nodes.push(h("code", {}, code.trim() || code));
    else if (bold ?? bold2) nodes.push(h("strong", {}, ...inline(bold ?? bold2)));
    else if (soft ?? soft2) nodes.push(h("em", {}, ...inline(soft ?? soft2)));
    else nodes.push(...link(label, href, whole));
    text = text.slice(found.index + whole.length);
  }
  if (text) nodes.push(text);
  return nodes;
}

/** A link beside its address, so that the text cannot hide it; anything but http(s), and any image, stays text. */
function link(label, href, whole) {
  if (whole.startsWith("!") || !/^https?:\/\//i.test(href) || !URL.canParse(href)) return [whole];
  const anchor = h("a", { href, rel: "noopener noreferrer nofollow", target: "_blank" }, href);
  return label && label !== href ? [`${label} (`, anchor, ")"] : [anchor];
}
