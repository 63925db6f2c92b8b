// One turn: what the user says or decides goes out, what happens comes back and is shown.

import * as api from "./api.js";

/** A turn that runs. */
export class Turn {
  /**
   * @param body the request: input, and conversation if there is one
   * @param messages where items are shown
   */
  constructor(body, messages) {
    Object.assign(this, { body, messages, response: null, waiting: [], open: new Map() });
    this.key = crypto.randomUUID?.() ?? `${Date.now()}-${Math.random()}`;
    this.abort = new AbortController();
    this.stopped = false;
  }

  /** Follow it to its end. Raises Problem; then nothing of it is stored. */
  async run({ begun }) {
    let last = null;
    try {
      for await (const event of api.respond(this.body, this.key, this.abort.signal)) {
        last = event;
        if (event.type === "response.created") {
          this.response = event.response;
          begun(event.response);
        }
        this.tell(event);
        if (event.type === "response.failed") {
          throw new api.Problem(event.response.error?.message ?? "The turn failed.", { code: event.response.status });
        }
      }
    } catch (error) {
      for (const writing of this.open.values()) writing.remove();
      if (error.name === "AbortError") throw new api.Problem("Stopped.", { code: "cancelled" });
      throw error;
    }
    if (last?.type !== "response.completed") throw new api.Problem("The connection was lost.");
    return this.waiting;
  }

  tell(event) {
    const { item, output_index: place } = event;
    switch (event.type) {
      case "response.output_item.added":
        if (item.type === "message") this.open.set(place, this.messages.writing());
        break;
      case "response.output_text.delta":
      case "response.refusal.delta":
        this.open.get(place)?.append(event.delta);
        break;
      case "response.output_item.done":
        if (item.type === "mcp_approval_request") this.waiting.push(item);
        if (this.open.has(place)) this.open.get(place).done(item);
        else this.messages.add(item);
        this.open.delete(place);
        break;
    }
  }

  /** Stop it, in the service too. */
  async stop() {
    this.stopped = true;
    if (this.response) {
      try {
        await api.cancel(this.response.id);
        return;
      } catch { /* it ended by itself, or the service is away */ }
    }
    this.abort.abort();
  }
}
