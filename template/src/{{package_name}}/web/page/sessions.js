// The list of conversations: newest first, searched by title, renamed, deleted with a way back.

import * as api from "./api.js";
import { button, byId, make, speak, timeOf, toast } from "./dom.js";

const UNDO_SECONDS = 8;

export class Sessions {
  /** @param actions open(id), gone(id), failed(problem) */
  constructor(actions) {
    Object.assign(this, { actions, all: new Map(), after: null, more: true, loading: null, current: null });
    this.leaving = new Map();
    byId("search").addEventListener("input", () => this.show());
    byId("sessions").addEventListener("scroll", () => this.atEnd());
    addEventListener("pagehide", () => [...this.leaving.values()].forEach((leave) => leave()));
  }

  title(id) {
    return this.all.get(id)?.title ?? "New chat";
  }

  /** Read the newest page again; pages that were read before stay. */
  async refresh() {
    const page = await api.conversations();
    if (!this.all.size || !page.has_more) {
      this.all.clear();
      this.after = page.last_id;
      this.more = page.has_more;
    }
    this.take(page);
  }

  take(page) {
    for (const found of page.data) this.all.set(found.id, found);
    this.show();
  }

  async atEnd() {
    const nav = byId("sessions");
    if (!this.more || this.loading || nav.scrollTop + nav.clientHeight < nav.scrollHeight - 200) return;
    this.loading = api.conversations(this.after);
    try {
      const page = await this.loading;
      this.after = page.last_id;
      this.more = page.has_more;
      this.take(page);
    } catch (problem) {
      this.actions.failed(problem);
    } finally {
      this.loading = null;
    }
  }

  show() {
    const words = byId("search").value.trim().toLowerCase();
    const shown = [...this.all.values()]
      .filter((each) => !this.leaving.has(each.id) && (each.title ?? "").toLowerCase().includes(words))
      .sort((one, other) => other.updated_at - one.updated_at);
    const focused = document.activeElement?.dataset?.id;
    byId("list").replaceChildren(...shown.map((each) => this.entry(each)));
    if (!shown.length) byId("list").append(make("p", {}, words ? "No title has these words." : "No conversations yet."));
    if (focused) byId("list").querySelector(`[data-id="${CSS.escape(focused)}"]`)?.focus();
    if (words && this.more) this.atEnd();
  }

  entry(each) {
    const title = each.title || "New chat";
    const open = make("button", { type: "button", className: "open", dataset: { id: each.id }, onclick: () => this.actions.open(each.id) },
      make("b", {}, title), make("span", {}, timeOf(each.updated_at)));
    const element = make("li", {}, open,
      button("✎", () => this.rename(each, element), { "aria-label": `Rename ${title}`, title: "Rename" }),
      button("✕", () => this.remove(each), { "aria-label": `Delete ${title}`, title: "Delete" }));
    if (each.id === this.current) element.setAttribute("aria-current", "page");
    return element;
  }

  select(id) {
    this.current = id;
    this.show();
  }

  rename(each, element) {
    const field = make("input", { value: each.title ?? "", maxLength: 200, "aria-label": "New title" });
    let ended = false;
    const end = async (keep) => {
      if (ended) return;
      ended = true;
      const title = field.value.trim();
      if (keep && title && title !== each.title) {
        try {
          this.all.set(each.id, await api.rename(each.id, title));
          if (each.id === this.current) byId("title").textContent = title;
          speak("Renamed.");
        } catch (problem) {
          this.actions.failed(problem);
        }
      }
      this.show();
      byId("list").querySelector(`[data-id="${CSS.escape(each.id)}"]`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      if (event.key === "Enter") end(true);
      if (event.key === "Escape") { event.stopPropagation(); end(false); }
    });
    field.addEventListener("blur", () => end(true));
    element.replaceChildren(field);
    field.select();
  }

  /** It is gone from the list at once, and from the store when nobody took it back. */
  remove(each) {
    let timer = null;
    const leave = async () => {
      clearTimeout(timer);
      if (!this.leaving.has(each.id)) return;
      try {
        await api.remove(each.id);
        this.all.delete(each.id);
      } catch (problem) {
        if (problem.status === 404) this.all.delete(each.id);
        else this.actions.failed(problem);
      } finally {
        this.leaving.delete(each.id);
        this.show();
      }
    };
    const undo = () => {
      clearTimeout(timer);
      this.leaving.delete(each.id);
      this.show();
      byId("list").querySelector(`[data-id="${CSS.escape(each.id)}"]`)?.focus();
    };
    this.leaving.set(each.id, leave);
    timer = setTimeout(leave, UNDO_SECONDS * 1000);
    toast("Deleted.", { text: "Undo", do: undo }, UNDO_SECONDS);
    this.show();
    if (each.id === this.current) this.actions.gone(each.id);
  }
}
