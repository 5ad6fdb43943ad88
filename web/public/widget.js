// A chat in a corner of another page: <script src="https://SERVER/widget.js" data-model="NAME" data-title="Ask us" defer></script>
// The chat itself runs in a frame of the server; this page sees nothing of it. The server must list this page's origin.
(() => {
  const me = document.currentScript;
  const { model = "", title = "Chat", key = "", color = "#1f6f63" } = me.dataset;
  const frame = document.createElement("iframe");
  const told = new URLSearchParams({ model, title, key });
  frame.title = title;
  frame.allow = "clipboard-write";
  frame.hidden = true;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = title;
  button.setAttribute("aria-expanded", "false");
  const fixed = { position: "fixed", right: "16px", zIndex: "2147483000", border: "0" };
  Object.assign(frame.style, fixed, {
    bottom: "72px", width: "min(390px, calc(100vw - 32px))", height: "min(600px, calc(100vh - 100px))",
    borderRadius: "16px", boxShadow: "0 12px 48px rgb(0 0 0 / .25)", colorScheme: "light dark",
  });
  Object.assign(button.style, fixed, {
    bottom: "16px", padding: "12px 20px", borderRadius: "99px", background: color, color: "#fff",
    font: "600 15px/1.3 system-ui, sans-serif", cursor: "pointer", boxShadow: "0 4px 16px rgb(0 0 0 / .25)",
  });
  const set = (open) => {
    if (open && !frame.src) frame.src = `${new URL("widget.html", me.src).href}#${told}`;
    frame.hidden = !open;
    button.setAttribute("aria-expanded", String(open));
    (open ? frame : button).focus();
  };
  button.addEventListener("click", () => set(frame.hidden));
  window.addEventListener("message", (event) => event.source === frame.contentWindow && event.data === "ladderlm:close" && set(false));
  document.body.append(frame, button);
})();
