// Keeps the shell, so that the installed app opens at once and says so when the server is away. Never an API answer.
const SHELL = "ladderlm-shell-1";

self.addEventListener("install", (event) => {
  event.waitUntil(caches.open(SHELL).then((cache) => cache.addAll(["./", "./theme.js", "./icon.svg"])).then(() => self.skipWaiting()));
});

self.addEventListener("activate", (event) => {
  const old = (names) => Promise.all(names.filter((name) => name !== SHELL).map((name) => caches.delete(name)));
  event.waitUntil(caches.keys().then(old).then(() => self.clients.claim()));
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const root = new URL("./", self.location.href).pathname;
  if (request.method !== "GET" || url.origin !== self.location.origin) return;
  if (url.pathname.startsWith(`${root}assets/`)) {
    event.respondWith(caches.match(request).then((found) => found ?? fetched(request)));
  } else if (url.pathname === root || /\/(theme\.js|icon[\w-]*\.(svg|png)|manifest\.webmanifest)$/.test(url.pathname)) {
    event.respondWith(fetched(request).catch(() => caches.match(request, { ignoreSearch: true })));
  }
});

async function fetched(request) {
  const response = await fetch(request);
  if (response.ok) (await caches.open(SHELL)).put(request, response.clone());
  return response;
}
