// Start-up: the tabs, the models, the theme, the keyboard.

import * as api from "./api.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import { $, h, notice } from "./dom.js";
import * as next from "./next.js";
import * as settings from "./settings.js";
import { closePopover } from "./tokens.js";

const TABS = ["chat", "next", "compare"];
const MODEL = "ladderlm.model";
const model = () => $("model").value;

// --- Models: asked for again when the picker is opened, the window comes back, and now and then ----------------------

async function refreshModels() {
  let names;
  try {
    names = (await api.models()).map((entry) => entry.id);
    if (!$("notice").hidden && $("notice").dataset.from === "models") notice("");
  } catch (error) {
    $("notice").dataset.from = "models";
    notice(error.message);
    return;
  }
  const pick = $("model");
  const shown = [...pick.options].map((option) => option.value);
  if (names.join("\n") === shown.join("\n")) return;
  const chosen = pick.value || localStorage.getItem(MODEL);
  pick.replaceChildren(...names.map((name) => h("option", { value: name }, name)));
  pick.value = names.includes(chosen) ? chosen : (names[0] ?? "");
  compare.offer(names);
}

function setUpModels() {
  $("model").addEventListener("change", () => {
    localStorage.setItem(MODEL, model());
    if (!$("view-next").hidden) next.refresh();
  });
  $("model").addEventListener("focus", refreshModels);
  window.addEventListener("focus", refreshModels);
  setInterval(() => document.hidden || refreshModels(), 10_000);
}

// --- Tabs -----------------------------------------------------------------------------------------------------------

function show(name) {
  closePopover();
  for (const each of TABS) {
    const here = each === name;
    $(`view-${each}`).hidden = !here;
    $(`tab-${each}`).setAttribute("aria-selected", String(here));
    $(`tab-${each}`).tabIndex = here ? 0 : -1;
  }
  $("open-side").hidden = name !== "chat";
  document.querySelector(".model-pick").classList.toggle("away", name === "compare");
  history.replaceState(null, "", name === "chat" ? location.pathname : `#${name}`);
  if (name === "next") next.refresh();
}

function setUpTabs() {
  for (const name of TABS) {
    $(`tab-${name}`).addEventListener("click", () => show(name));
    $(`tab-${name}`).addEventListener("keydown", (event) => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      const other = TABS[(TABS.indexOf(name) + step + TABS.length) % TABS.length];
      show(other);
      $(`tab-${other}`).focus();
    });
  }
}

// --- Theme, panels, keyboard ----------------------------------------------------------------------------------------

function setUpTheme() {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const tell = () => $("theme").setAttribute("aria-pressed", String(dark()));
  $("theme").addEventListener("click", () => {
    root.dataset.theme = dark() ? "light" : "dark";
    localStorage.setItem("ladderlm.theme", root.dataset.theme);
    tell();
  });
  system.addEventListener("change", tell);
  tell();
}

function setUpPanels() {
  const panel = $("settings"), toggle = $("toggle-settings");
  const set = (open) => {
    panel.hidden = !open;
    toggle.setAttribute("aria-expanded", String(open));
    if (open) $("system").focus();
    else toggle.focus();
  };
  toggle.addEventListener("click", () => set(panel.hidden));
  $("close-settings").addEventListener("click", () => set(false));
  $("open-side").addEventListener("click", () => {
    const shown = $("side").classList.toggle("shown");
    $("open-side").setAttribute("aria-expanded", String(shown));
  });
  document.addEventListener("pointerdown", (event) => {
    if (!$("side").contains(event.target) && !$("open-side").contains(event.target)) $("side").classList.remove("shown");
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    if (closePopover() || chat.stop() || compare.stop()) return;
    if (!panel.hidden) set(false);
  });
}

setUpTheme();
setUpTabs();
setUpPanels();
settings.setUp();
compare.setUp();
next.setUp(model);
chat.setUp(model);
setUpModels();
await refreshModels();
show(TABS.includes(location.hash.slice(1)) ? location.hash.slice(1) : "chat");
