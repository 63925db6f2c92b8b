// Items of a conversation as elements: who said what, what tools did.

import { button, copyText, make } from "./dom.js";
import { rendered } from "./markdown.js";

const PICTURE = /^(data:image\/(png|jpeg|gif|webp);|https:\/\/)/;

/** The text of a message. */
export function textOf(item) {
  if (typeof item.content === "string") return item.content;
  return (item.content ?? []).map((part) => part.text ?? part.refusal ?? "").filter(Boolean).join("\n");
}

/** Shows items, and what can be done with them. */
export class Messages {
  /**
   * @param list where they are shown
   * @param actions edit(item, text), regenerate(item)
   */
  constructor(list, actions) {
    Object.assign(this, { list, actions });
    this.calls = new Map();
  }

  clear() {
    this.list.replaceChildren();
    this.calls.clear();
  }

  /** Items that are older than all that are shown, the newest first. */
  before(items) {
    const above = new Messages(make("ol"), this.actions);
    for (const item of [...items].reverse()) above.add(item);
    this.list.prepend(...above.list.childNodes);
  }

  add(item) {
    const element = this.elementOf(item);
    if (element) this.list.append(element);
    return element;
  }

  elementOf(item) {
    if (item.type === "message") return item.role === "user" ? this.said(item) : this.answer(item);
    if (item.type.endsWith("_output")) return this.output(item);
    if (item.type === "mcp_approval_request" || item.type === "mcp_approval_response") return null;
    if (item.type === "reasoning") {
      const words = (item.summary ?? []).map((part) => part.text).join("\n");
      return words ? folded("Thought", "", [["", words]]) : null;
    }
    if (item.type === "compaction") return folded("A summary stands for what came before", "", []);
    const element = folded("Calls", item.name ?? item.type.replaceAll("_", " "), [["Arguments", pretty(item.arguments ?? JSON.stringify(item))]]);
    if (item.call_id) this.calls.set(item.call_id, element);
    return element;
  }

  said(item) {
    const text = textOf(item);
    const body = make("div", { className: "body", dir: "auto" }, text);
    for (const part of Array.isArray(item.content) ? item.content : []) {
      if (part.type === "input_image" && PICTURE.test(part.image_url ?? "")) {
        body.append(make("img", { src: part.image_url, alt: "An image of yours", loading: "lazy", referrerPolicy: "no-referrer" }));
      } else if (part.type !== "input_text") {
        body.append(make("em", {}, ` [${part.filename ?? part.type.replace("input_", "")}]`));
      }
    }
    const tools = make("div", { className: "tools" }, button("Copy", () => copyText(text)));
    if (item.id && text) {
      tools.append(
        button("Edit", () => this.actions.edit(item, text)),
        button("Answer again", () => this.actions.regenerate(item, text)),
      );
    }
    return make("li", { className: "user" }, make("span", { className: "hidden" }, "You said:"), body, tools);
  }

  answer(item) {
    const body = make("div", { className: "body", dir: "auto" }, ...rendered(textOf(item)));
    const tools = make("div", { className: "tools" }, button("Copy", () => copyText(textOf(item))));
    return make("li", { className: "answer" }, make("span", { className: "hidden" }, "The answer:"), body, tools);
  }

  output(item) {
    const text = typeof item.output === "string" ? item.output : JSON.stringify(item.output, null, 2);
    const call = this.calls.get(item.call_id);
    const shown = [["Result", pretty(text ?? "")]];
    if (!call) return folded("Result", "", shown);
    call.querySelector("details > div").append(...parts(shown));
    call.querySelector("summary").firstChild.data = "Called ";
    return null;
  }

  /** A message that is being written: append(text), done(item). */
  writing() {
    const body = make("div", { className: "body", dir: "auto" });
    const element = make("li", { className: "answer writing" }, body);
    this.list.append(element);
    let text = "", waits = false;
    return {
      append: (more) => {
        text += more;
        if (waits) return;
        waits = true;
        requestAnimationFrame(() => { waits = false; body.replaceChildren(...rendered(text)); });
      },
      done: (item) => element.replaceWith(this.answer(item)),
      remove: () => element.remove(),
    };
  }
}

function folded(verb, name, shown) {
  const title = make("summary", {}, `${verb} `, name ? make("code", {}, name) : null);
  return make("li", { className: "call" }, make("details", {}, title, make("div", {}, ...parts(shown))));
}

function parts(shown) {
  return shown.flatMap(([label, text]) => [label ? make("div", {}, label) : null, make("pre", { tabIndex: 0 }, make("code", {}, text))]).filter(Boolean);
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
