// Colours for code. The library and each language are fetched when they are first needed.

import type { LanguageFn } from "highlight.js";
import type { Root } from "hast";

type Load = () => Promise<{ default: LanguageFn }>;

const LANGUAGES: Record<string, Load> = {
  bash: () => import("highlight.js/lib/languages/bash"),
  c: () => import("highlight.js/lib/languages/c"),
  cpp: () => import("highlight.js/lib/languages/cpp"),
  css: () => import("highlight.js/lib/languages/css"),
  diff: () => import("highlight.js/lib/languages/diff"),
  go: () => import("highlight.js/lib/languages/go"),
  java: () => import("highlight.js/lib/languages/java"),
  javascript: () => import("highlight.js/lib/languages/javascript"),
  json: () => import("highlight.js/lib/languages/json"),
  markdown: () => import("highlight.js/lib/languages/markdown"),
  python: () => import("highlight.js/lib/languages/python"),
  rust: () => import("highlight.js/lib/languages/rust"),
  sql: () => import("highlight.js/lib/languages/sql"),
  typescript: () => import("highlight.js/lib/languages/typescript"),
  xml: () => import("highlight.js/lib/languages/xml"),
  yaml: () => import("highlight.js/lib/languages/yaml"),
};
const ALIASES: Record<string, string> = {
  py: "python", python3: "python", js: "javascript", jsx: "javascript", ts: "typescript", tsx: "typescript", sh: "bash",
  shell: "bash", zsh: "bash", console: "bash", html: "xml", svg: "xml", yml: "yaml", rs: "rust", "c++": "cpp", md: "markdown",
  jsonl: "json", golang: "go", toml: "yaml",
};

const LONGEST = 50_000;

let ready: Promise<ReturnType<typeof import("lowlight").createLowlight>> | null = null;

/** The code as a tree of named stretches; null for languages that are not known. */
export async function highlight(code: string, language: string): Promise<Root | null> {
  const name = ALIASES[language.toLowerCase()] ?? language.toLowerCase();
  const load = LANGUAGES[name];
  if (!load || code.length > LONGEST) return null;
  ready ??= import("lowlight").then((m) => m.createLowlight());
  const [painter, grammar] = await Promise.all([ready, load()]);
  if (!painter.registered(name)) painter.register(name, grammar.default);
  return painter.highlight(name, code);
}
