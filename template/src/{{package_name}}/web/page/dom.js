// Elements are made here and nowhere else: text is always text, so nothing that was said can become a part of the page.

export const byId = (id) => document.getElementById(id);

/** An element with properties and children; strings become text. */
export function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "dataset") Object.assign(element.dataset, value);
    else if (name.startsWith("aria-") || name === "role") element.setAttribute(name, value);
    else element[name] = value;
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export const button = (text, action, properties = {}) =>
  make("button", { type: "button", className: "quiet", onclick: action, ...properties }, text);

/** Tell a screen reader, without showing it. */
export function speak(text) {
  byId("spoken").textContent = text;
}

/** A message that goes by itself; with an action to take it back. Returns a function that removes it. */
export function toast(text, action = null, seconds = 4) {
  const element = make("div", { className: "toast" }, make("span", {}, text));
  const remove = () => element.remove();
  if (action) element.append(button(action.text, () => { remove(); action.do(); }, { className: "" }));
  byId("toasts").append(element);
  setTimeout(remove, seconds * 1000);
  return remove;
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    toast("Copied.");
  } catch {
    toast("This browser does not let the page copy.");
  }
}

const times = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "short" });
export const timeOf = (seconds) => times.format(new Date(seconds * 1000));
