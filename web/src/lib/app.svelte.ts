// What every view shares: where we are, the models on offer, notices, the theme.

import * as api from "./api";
import { keep, kept } from "./kept";
import type { Model } from "./types";

export type View = "chat" | "compare" | "next" | "runs" | "models" | "usage";
export const VIEWS: { view: View; name: string; icon: string }[] = [
  { view: "compare", name: "Compare", icon: "compare" },
  { view: "next", name: "Next token", icon: "next" },
  { view: "runs", name: "Runs", icon: "runs" },
  { view: "models", name: "Models", icon: "models" },
  { view: "usage", name: "Keys & usage", icon: "usage" },
];

class App {
  view = $state<View>("chat");
  /** What of it: a chat's or a run's id. */
  item = $state("");
  models = $state.raw<Model[]>([]);
  model = $state(kept<string>("model", ""));
  notice = $state("");
  done = $state("");
  sidebar = $state(kept<boolean>("sidebar", true));
  drawer = $state(false);
  settings = $state(false);
  search = $state(false);
  help = $state(false);
  probabilities = $state(kept<boolean>("probabilities", false));
  theme = $state<"" | "light" | "dark">(document.documentElement.dataset["theme"] as "light" | "dark" | undefined ?? "");
  narrow = $state(false);
  /** Whether the models were told once. */
  ready = $state(false);
  #from = "";

  go(view: View, item = ""): void {
    this.drawer = false;
    const hash = view === "chat" && !item ? "#/" : `#/${view}${item ? `/${item}` : ""}`;
    if (location.hash !== hash) location.hash = hash;
    this.read();
  }

  /** Changes the address without a step in the browser's history. */
  settle(view: View, item: string): void {
    history.replaceState(null, "", `#/${view}/${item}`);
    this.view = view;
    this.item = item;
  }

  read(): void {
    const [, view = "", item = ""] = location.hash.split("/");
    this.view = view === "chat" || VIEWS.some((v) => v.view === view) ? (view as View) : "chat";
    this.item = decodeURIComponent(item);
  }

  tell(message: string, from = ""): void {
    this.notice = message;
    this.#from = from;
  }

  say(message: string): void {
    this.done = message;
    setTimeout(() => this.done === message && (this.done = ""), 2500);
  }

  choose(model: string): void {
    this.model = model;
    keep("model", model);
  }

  async refresh(): Promise<void> {
    let found: Model[];
    try {
      found = await api.models();
      if (this.#from === "models") this.tell("");
    } catch (error) {
      this.tell(api.wrong(error), "models");
      return;
    }
    const told = JSON.stringify(found);
    if (told !== JSON.stringify(this.models)) this.models = found;
    if (!found.some((m) => m.id === this.model)) this.model = found[0]?.id ?? "";
    this.ready = true;
  }

  get dark(): boolean {
    return this.theme ? this.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  }

  turn(): void {
    this.theme = this.dark ? "light" : "dark";
    document.documentElement.dataset["theme"] = this.theme;
    try {
      localStorage.setItem("ladderlm.theme", this.theme); // as it is: theme.js reads it
    } catch {
      // for this visit only
    }
  }

  toggleSidebar(): void {
    if (this.narrow) this.drawer = !this.drawer;
    else {
      this.sidebar = !this.sidebar;
      keep("sidebar", this.sidebar);
    }
  }

  toggleProbabilities(): void {
    this.probabilities = !this.probabilities;
    keep("probabilities", this.probabilities);
  }
}

export const app = new App();
