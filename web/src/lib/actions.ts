// Small behaviours for elements.

/** Fits a textarea to its text, up to what its style allows; drawn again whenever `value` changes. */
export function fitted(area: HTMLTextAreaElement, value: string): void {
  area.style.height = "auto";
  if (value !== "" || area.rows > 1) area.style.height = `${area.scrollHeight + 2}px`;
}

/** Whether this is the Enter that sends: not with Shift, not one of an input method that is composing. */
export function sends(event: KeyboardEvent): boolean {
  return event.key === "Enter" && !event.shiftKey && !event.isComposing;
}

/** Shows a dialog as modal while its element is there. */
export function modal(dialog: HTMLDialogElement): () => void {
  const before = document.activeElement;
  dialog.showModal();
  return () => {
    dialog.close();
    if (before instanceof HTMLElement) before.focus();
  };
}
