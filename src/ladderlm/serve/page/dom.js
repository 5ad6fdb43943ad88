// Building DOM nodes. Text is always a text node: nothing that a model or a user wrote is ever parsed as markup.

/** An element: h("button", { class: "chip", onclick: f }, "text", node). False and null children are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== false && child !== null && child !== undefined));
  return element;
}

export const $ = (id) => document.getElementById(id);

/** A line icon from path data. */
export function icon(path) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 24 24");
  svg.setAttribute("aria-hidden", "true");
  const shape = document.createElementNS("http://www.w3.org/2000/svg", "path");
  shape.setAttribute("d", path);
  svg.append(shape);
  return svg;
}

export const ICONS = {
  copy: "M9 9h10v11H9zM15 9V4H5v11h4",
  again: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M4 20l4-1L19 8l-3-3L5 16zM14 7l3 3",
  remove: "M6 7h12M10 7V5h4v2M8 7l1 12h6l1-12",
  left: "M14 6l-6 6 6 6",
  right: "M10 6l6 6-6 6",
};

/** A small button with an icon and a name for those who do not see it. */
export function iconButton(name, label, onclick, attributes = {}) {
  return h("button", { type: "button", class: "icon small", "aria-label": label, title: label, onclick, ...attributes }, icon(ICONS[name]));
}

/** Lets a textarea grow with its text, up to what its style allows. */
export function autogrow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight + 2}px`;
}

/** Makes Enter send and Shift+Enter break the line; an input method that is composing keeps its Enter. */
export function sendOnEnter(area, send) {
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      send();
    }
  });
}

export function notice(text) {
  const place = $("notice");
  place.textContent = text;
  place.hidden = !text;
}
