// Which chat is on the screen. One whose answer is still being made goes on when another is opened.

import { app } from "./app.svelte";
import { wrong } from "./api";
import { Chat } from "./chat.svelte";

class Open {
  chat = $state.raw(new Chat());
  #going = new Map<string, Chat>();

  async show(id: string, message = ""): Promise<void> {
    if (id === this.chat.id && !message) return;
    if (this.chat.busy && this.chat.id) this.#going.set(this.chat.id, this.chat);
    const going = this.#going.get(id);
    this.#going.delete(id);
    if (going) {
      this.chat = going;
      return;
    }
    const chat = new Chat();
    this.chat = chat;
    if (!id) return;
    try {
      await chat.load(id);
      if (message) await chat.show(message);
    } catch (error) {
      app.tell(wrong(error));
      if (this.chat === chat) app.go("chat");
    }
  }
}

export const open = new Open();
