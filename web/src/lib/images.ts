// Images that are attached: made small here, before anything is sent.

import type { Attachment } from "./types";

export const MOST = 8; // in one message
const SIDE = 1024; // pixels
const LARGEST = 30e6; // bytes of a file that is opened
const HEAVY = 1e6; // bytes beyond which what is not a photograph becomes one
const KNOWN = /^data:image\/(png|jpeg|webp|gif);base64,/;

/** Whether a file is to be shown rather than read; an SVG is text. */
export const pictured = (file: File): boolean => file.type.startsWith("image/") && file.type !== "image/svg+xml";

/** What a chat holds may have come from a file: only images in the address itself are shown. */
export const shown = (attachment: Attachment): string | undefined => (attachment.image && KNOWN.test(attachment.image) ? attachment.image : undefined);

/** The image drawn anew at 1024 pixels at most: nothing of the file's other contents (place, camera) is left. Throws on what is no image. */
export async function shrunk(file: File): Promise<Attachment> {
  if (file.size > LARGEST) throw new Error(`${file.name} is larger than ${LARGEST / 1e6} MB.`);
  let bitmap: ImageBitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    throw new Error(`${file.name} is not an image that this browser can open.`);
  }
  const scale = Math.min(1, SIDE / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const drawn = canvas.getContext("2d");
  if (!drawn) throw new Error("This browser cannot scale images.");
  drawn.imageSmoothingQuality = "high";
  drawn.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  let image = file.type === "image/jpeg" ? "" : canvas.toDataURL("image/png");
  if (!image || size(image) > HEAVY) {
    drawn.globalCompositeOperation = "destination-over"; // what shines through is white, not black
    drawn.fillStyle = "white";
    drawn.fillRect(0, 0, canvas.width, canvas.height);
    image = canvas.toDataURL("image/jpeg", 0.88);
  }
  return { name: file.name || "image", bytes: size(image), text: "", image };
}

const size = (url: string): number => Math.floor(((url.length - url.indexOf(",") - 1) * 3) / 4);
