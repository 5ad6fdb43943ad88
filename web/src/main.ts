import { mount } from "svelte";

import App from "./App.svelte";
import "./app.css";

const target = document.getElementById("app");
if (target) mount(App, { target });

// The shell is kept for an installed app. The policy lets one name make the address of a worker, and only this one.
interface Factory {
  createPolicy(name: string, rules: { createScriptURL(url: string): string }): { createScriptURL(url: string): string };
}
if ("serviceWorker" in navigator && import.meta.env.PROD) {
  const types = (window as unknown as { trustedTypes?: Factory }).trustedTypes;
  const worker = types?.createPolicy("worker", { createScriptURL: () => "./sw.js" }).createScriptURL("") ?? "./sw.js";
  navigator.serviceWorker.register(worker).catch(() => {});
}
