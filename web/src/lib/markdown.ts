// Markdown as a tree of tokens, never as a string of markup: what draws it makes elements one by one, and whatever it
// does not know stays text. HTML in the text is text.

import { Marked, type Token as Mark, type TokenizerAndRendererExtension } from "marked";

export type { Mark };

const block: TokenizerAndRendererExtension = {
  name: "mathBlock",
  level: "block",
  start: (source) => source.match(/\$\$|\\\[/)?.index,
  tokenizer(source) {
    const found = /^\$\$([\s\S]+?)\$\$(?:\n|$)/.exec(source) ?? /^\\\[([\s\S]+?)\\\](?:\n|$)/.exec(source);
    return found ? { type: "mathBlock", raw: found[0], text: (found[1] ?? "").trim() } : undefined;
  },
};

const inline: TokenizerAndRendererExtension = {
  name: "math",
  level: "inline",
  start: (source) => source.match(/\$|\\\(|\\\[/)?.index,
  tokenizer(source) {
    const found =
      /^\$\$([^$]+?)\$\$/.exec(source) ??
      /^\$(?![\s$])((?:\\.|[^\\$\n])+?)(?<!\s)\$(?![\d\p{L}])/u.exec(source) ??
      /^\\\(([\s\S]+?)\\\)/.exec(source) ??
      /^\\\[([\s\S]+?)\\\]/.exec(source);
    return found ? { type: "math", raw: found[0], text: (found[1] ?? "").trim(), display: /^(\$\$|\\\[)/.test(found[0]) } : undefined;
  },
};

const reader = new Marked({ gfm: true, extensions: [block, inline] });

/** The blocks of `text`. Those that are as in `before` are the same objects, so that only what changed is drawn again. */
export function blocks(text: string, before: readonly Mark[] = []): Mark[] {
  return reader.lexer(text).map((mark, index) => {
    const old = before[index];
    return old && old.raw === mark.raw && old.type === mark.type ? old : mark;
  });
}

/** Where a link may lead. */
export function safe(href: string): string | null {
  return /^(https?:\/\/|mailto:)/i.test(href) && URL.canParse(href) ? href : null;
}
