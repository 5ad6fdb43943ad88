// Before the first paint: the theme that was chosen last, else the system's.
try {
  const chosen = localStorage.getItem("ladderlm.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // a browser that keeps nothing follows the system
}
