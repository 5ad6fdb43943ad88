import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

// The server's policy allows no markup made from strings, so fragments are built element by element; no inlined assets.
export default defineConfig({
  plugins: [svelte({ compilerOptions: { fragments: "tree", css: "external", modernAst: true } })],
  base: "./",
  build: {
    outDir: "../src/ladderlm/serve/page",
    emptyOutDir: true,
    assetsInlineLimit: 0,
    target: "es2022",
    modulePreload: { polyfill: false },
    reportCompressedSize: false,
    rolldownOptions: { input: { index: "index.html", widget: "widget.html" } },
  },
  server: { proxy: { "/v1": "http://127.0.0.1:8080", "/health": "http://127.0.0.1:8080" } },
});
