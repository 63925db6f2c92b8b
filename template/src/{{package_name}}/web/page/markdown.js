// What models write most: paragraphs, headings, lists, code, emphasis, links. Everything else stays as it was written.
// It makes elements, never HTML.

import { button, copyText, make } from "./dom.js";

const INLINE = /(`+)([\s\S]+?)\1|\*\*([^*\n]+?)\*\*|(?<![\w*])\*([^*\s][^*\n]*?)\*(?!\w)|\[([^\]\n]+)\]\((https?:\/\/[^\s)]+)\)|(https?:\/\/[^\s<>()]+[^\s<>().,;:!?'"])/g;
const ITEM = /^\s*(?:[-*+]|(\d+)[.)])\s+(.*)$/;

/** The elements for a text. */
export function rendered(text) {
  const lines = text.replaceAll("\r", "").split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const fence = lines[at].match(/^\s*(```+|~~~+)\s*([\w+#.-]*)\s*$/);
    if (fence) {
      let end = at + 1;
      while (end < lines.length && !lines[end].trim().startsWith(fence[1])) end += 1;
      found.push(codeBlock(lines.slice(at + 1, end).join("\n")));
      at = end + 1;
    } else if (!lines[at].trim()) {
      at += 1;
    } else if (/^#{1,6}\s/.test(lines[at])) {
      found.push(make("h4", {}, ...inline(lines[at].replace(/^#+\s+/, ""))));
      at += 1;
    } else if (ITEM.test(lines[at])) {
      const first = lines[at].match(ITEM);
      const list = first[1] ? make("ol", { start: Math.min(Number(first[1]), 1e6) }) : make("ul");
      for (; at < lines.length && ITEM.test(lines[at]); at += 1) {
        list.append(make("li", {}, ...inline(lines[at].match(ITEM)[2])));
      }
      found.push(list);
    } else {
      const begin = at;
      while (at < lines.length && lines[at].trim() && !ITEM.test(lines[at]) && !/^\s*(```|~~~|#{1,6}\s)/.test(lines[at])) at += 1;
      if (at === begin) at += 1;
      const paragraph = make("p");
      lines.slice(begin, at).forEach((line, number) => paragraph.append(...(number ? [make("br")] : []), ...inline(line)));
      found.push(paragraph);
    }
  }
  return found;
}

function codeBlock(text) {
  const copy = button("Copy", () => copyText(text), { className: "quiet", "aria-label": "Copy this code" });
  return make("div", { className: "code" }, make("pre", { tabIndex: 0 }, make("code", {}, text)), make("div", { className: "tools" }, copy));
}

function inline(text) {
  const found = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    found.push(text.slice(end, match.index));
    end = match.index + match[0].length;
    const [whole, , code, strong, soft, words, link, bare] = match;
    if (code !== undefined) found.push(make("code", {}, code));
    else if (strong !== undefined) found.push(make("strong", {}, strong));
    else if (soft !== undefined) found.push(make("em", {}, soft));
    else if (link ?? bare) found.push(make("a", { href: link ?? bare, target: "_blank", rel: "noopener noreferrer" }, words ?? bare));
    else found.push(whole);
  }
  return [...found, text.slice(end)];
}
