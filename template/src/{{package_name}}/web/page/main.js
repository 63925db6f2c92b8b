// The page: which conversation is shown, what is being said in it, what went wrong.

import * as api from "./api.js";
import { button, byId, make, speak, toast } from "./dom.js";
import { Messages } from "./messages.js";
import { Sessions } from "./sessions.js";
import { Turn } from "./turn.js";

const EXAMPLES = ["My name is Ada", "What is my name?", "What time is it in Europe/Berlin?", "Count the words: one two three"];
const BUSY_SECONDS = 2;

const messages = new Messages(byId("messages"), { edit, regenerate });
const sessions = new Sessions({ open: (id) => go(id), gone: () => go(null), failed: (problem) => fail(problem) });
const scroll = byId("scroll");
let current = null, turn = null, older = null, shown = 0, editing = null;

// ── Where we are ────────────────────────────────────────────────────────────

const inAddress = () => (location.hash.length > 1 ? decodeURIComponent(location.hash.slice(1)) : null);

function go(id) {
  closeDrawer();
  const hash = id ? `#${encodeURIComponent(id)}` : "";
  if (location.hash !== hash) history.pushState(null, "", hash || location.pathname + location.search);
  return show(id);
}

/** Show a conversation, or an empty one. */
async function show(id) {
  const number = ++shown;
  turn?.abort.abort();
  current = id;
  older = editing = null;
  messages.clear();
  decide([]);
  settle();
  sessions.select(id);
  title(id ? sessions.title(id) : "New chat");
  byId("empty").hidden = Boolean(id);
  byId("message").focus({ preventScroll: true });
  if (!id) return;
  state("Loading…");
  try {
    const [info, page] = await Promise.all([api.conversation(id), api.items(id)]);
    if (number !== shown) return;
    title(info.title ?? "New chat");
    put(page);
    scroll.scrollTop = scroll.scrollHeight;
    state("");
  } catch (problem) {
    if (number === shown) fail(problem, () => show(id));
  }
}

function put(page) {
  const waiting = page.data.filter((item) => item.type === "mcp_approval_request");
  messages.before(page.data);
  if (waiting.length) decide(waiting.reverse());
  older = page.has_more ? page.last_id : null;
  byId("empty").hidden = Boolean(current && page.data.length);
}

scroll.addEventListener("scroll", async () => {
  if (scroll.scrollTop > 300 || !older) return;
  const [from, number, height] = [older, shown, scroll.scrollHeight];
  older = null;
  try {
    const page = await api.items(current, from);
    if (number !== shown) return;
    put(page);
    scroll.scrollTop += scroll.scrollHeight - height;
  } catch (problem) {
    older = from;
    fail(problem);
  }
});

function title(text) {
  byId("title").textContent = text;
  document.title = `${text} · ${byId("agent").textContent}`;
}

// ── Saying something ────────────────────────────────────────────────────────

async function say(text, { retry = null } = {}) {
  if (turn || !text.trim()) return;
  byId("message").value = "";
  byId("empty").hidden = true;
  problem(null);
  let into = current;
  try {
    if (editing) {
      into = (await api.fork(current, editing)).id;
      editing = null;
      await go(into);
    }
  } catch (error) {
    byId("message").value = text;
    fail(error);
    return;
  }
  const asked = messages.add({ type: "message", role: "user", content: text });
  await follow(retry ?? new Turn({ input: text, ...(into ? { conversation: into } : {}) }, messages), {
    undo: () => { asked.remove(); byId("message").value ||= text; },
    done: async () => {
      // It has an id now, by which it can be edited.
      const said = (await api.items(current)).data.find((item) => item.role === "user");
      if (said && asked.isConnected) asked.replaceWith(messages.elementOf(said));
    },
    again: (same) => say(text, { retry: same }),
  });
}

/** Run a turn; undo is called if nothing of it is stored. */
async function follow(next, { undo, again, done = () => {} }) {
  const number = shown;
  turn = next;
  running(true);
  stick(true);
  try {
    const waiting = await next.run({
      begun: (response) => {
        state("");
        if (number !== shown || current === response.conversation.id) return;
        current = response.conversation.id;
        history.replaceState(null, "", `#${encodeURIComponent(current)}`);
      },
    });
    if (number !== shown) return;
    decide(waiting);
    await done();
    speak(waiting.length ? "A decision of yours is needed." : byId("messages").lastElementChild?.innerText ?? "");
  } catch (error) {
    if (number !== shown) return;
    undo();
    if (!next.body.conversation) {  // it would have begun with this
      current = null;
      history.replaceState(null, "", location.pathname + location.search);
    }
    if (error.code === "session_busy") return later(error, next, again);
    if (error.code === "approval_pending") return show(current);
    if (error.code === "cancelled") toast("Stopped. Nothing of it is stored.");
    else fail(error, error.status === 0 || error.status >= 500 ? () => again(fresh(next)) : null);
    if (byId("messages").children.length === 0) byId("empty").hidden = false;
  } finally {
    if (turn === next) {
      turn = null;
      running(false);
    }
    if (number === shown) refresh();
  }
}

/** The same request once more: its key makes it count once, whatever became of the first. */
function fresh(old) {
  const next = new Turn(old.body, messages);
  next.key = old.key;
  return next;
}

function later(error, next, again) {
  const seconds = error.retryAfter || BUSY_SECONDS;
  state("Busy elsewhere…");
  fail(new api.Problem("Another answer is being written in this conversation, perhaps in another tab."), () => again(fresh(next)));
  setTimeout(() => { if (!turn && !byId("problem").hidden) show(current); }, seconds * 1000);
}

async function refresh() {
  try {
    await sessions.refresh();
    sessions.select(current);
    if (current && sessions.all.has(current)) title(sessions.title(current));
  } catch (problem) {
    if (byId("problem").hidden) fail(problem);  // what failed before matters more
  }
}

function edit(item, text) {
  editing = item.id;
  byId("message").value = text;
  byId("message").focus();
  toast("It goes into a copy: this conversation stays as it is.");
}

async function regenerate(item, text) {
  if (turn) return;
  editing = item.id;
  await say(text);
}

// ── Decisions ───────────────────────────────────────────────────────────────

function decide(requests) {
  const decisions = new Map();
  const cards = requests.map((request) => {
    const choose = (approve, card) => {
      decisions.set(request.id, approve);
      card.querySelector(".row").replaceChildren(approve ? "Approved" : "Rejected");
      if (decisions.size === requests.length) send(decisions);
    };
    const card = make("section", { className: "card", role: "group", "aria-label": `Decide about ${request.name}` },
      make("p", {}, "The agent wants to call ", make("code", {}, request.name)),
      make("pre", { tabIndex: 0 }, make("code", {}, request.arguments)),
      make("div", { className: "row" },
        button("Reject", () => choose(false, card), { className: "" }),
        button("Approve", () => choose(true, card), { className: "primary" })));
    return card;
  });
  byId("approval").replaceChildren(...cards);
  byId("approval").hidden = !cards.length;
  byId("message").disabled = Boolean(cards.length);
  byId("message").placeholder = cards.length ? "Approve or reject first" : "Message";
  cards[0]?.querySelector("button:last-of-type")?.focus({ preventScroll: true });
  if (cards.length) scroll.scrollTop = scroll.scrollHeight;
}

async function send(decisions) {
  const input = [...decisions].map(([id, approve]) => ({ type: "mcp_approval_response", approval_request_id: id, approve }));
  const next = new Turn({ input, conversation: current }, messages);
  decide([]);
  await follow(next, { undo: () => show(current), again: () => show(current) });
}

// ── States ──────────────────────────────────────────────────────────────────

function state(text) {
  byId("state").textContent = text;
}

function settle() {
  problem(null);
  running(false);
  state(navigator.onLine ? "" : "Offline");
}

function running(is) {
  byId("send").hidden = is;
  byId("stop").hidden = !is;
  if (is) state("Connecting…");
  else if (byId("state").textContent === "Connecting…") state("");
}

function problem(text, again = null) {
  const box = byId("problem");
  box.hidden = !text;
  box.replaceChildren(...(text ? [make("span", {}, text)] : []));
  if (text && again) box.append(button("Try again", () => { problem(null); again(); }, { className: "" }));
}

function fail(error, again = null) {
  state(navigator.onLine ? "" : "Offline");
  if (error.status === 401) signIn(error);
  else if (error.status === 404 && error.code === "conversation_not_found") {
    problem("This conversation is not there, or not any more.");
    byId("empty").hidden = false;
  } else problem(error.message ?? String(error), again);
}

/** Keep the newest words in sight, unless somebody scrolls up. */
let sticks = true;
function stick(is) {
  sticks = is;
  scroll.scrollTop = scroll.scrollHeight;
}
scroll.addEventListener("wheel", () => { sticks = scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 80; }, { passive: true });
scroll.addEventListener("touchmove", () => { sticks = scroll.scrollTop + scroll.clientHeight > scroll.scrollHeight - 80; }, { passive: true });
new MutationObserver(() => { if (turn && sticks) scroll.scrollTop = scroll.scrollHeight; }).observe(byId("messages"), { childList: true, subtree: true, characterData: true });

document.addEventListener("visibilitychange", async () => {
  if (document.hidden || turn) return;
  const before = sessions.all.get(current)?.updated_at;
  await refresh();
  if (!turn && sessions.all.get(current)?.updated_at !== before) show(current);  // another tab or device went on
});
addEventListener("offline", () => state("Offline"));
addEventListener("online", () => { state(""); if (!turn) show(current).then(refresh); });

// ── Signing in ──────────────────────────────────────────────────────────────

function signIn(error) {
  const dialog = byId("sign-in"), link = byId("sign-in-link");
  if (api.hasToken()) byId("sign-in-text").textContent = error.message;
  if (error.signIn && URL.canParse(error.signIn, location.href) && /^https?:$/.test(new URL(error.signIn, location.href).protocol)) {
    link.href = error.signIn;
    link.hidden = false;
    byId("token").closest("label").hidden = true;
    byId("token").required = false;
  }
  if (!dialog.open) dialog.showModal();
}

byId("token-form").addEventListener("submit", () => {
  if (byId("token").value) api.setToken(byId("token").value.trim());
  byId("token").value = "";
  byId("sign-out").hidden = !api.hasToken();
  start();
});
byId("sign-out").addEventListener("click", () => { api.setToken(null); location.reload(); });

// ── The person ──────────────────────────────────────────────────────────────

byId("composer").addEventListener("submit", (event) => { event.preventDefault(); say(byId("message").value); });
byId("message").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    say(byId("message").value);
  }
});
byId("stop").addEventListener("click", () => turn?.stop());
addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  if (byId("drawer").classList.contains("open")) closeDrawer();
  else if (turn) turn.stop();
  else if (editing) { editing = null; byId("message").value = ""; toast("Not edited."); }
});
byId("new").addEventListener("click", () => go(null));
byId("menu").addEventListener("click", () => {
  byId("drawer").classList.add("open");
  byId("menu").setAttribute("aria-expanded", "true");
  byId("new").focus();
});
scroll.addEventListener("click", closeDrawer);
function closeDrawer() {
  if (!byId("drawer").classList.contains("open")) return;
  byId("drawer").classList.remove("open");
  byId("menu").setAttribute("aria-expanded", "false");
  byId("menu").focus();
}
byId("export").addEventListener("click", async () => {
  try {
    const link = make("a", { href: URL.createObjectURL(await api.everything()), download: "conversations.jsonl" });
    link.click();
    URL.revokeObjectURL(link.href);
  } catch (problem) {
    fail(problem);
  }
});
byId("examples").append(...EXAMPLES.map((text) => button(text, () => say(text), { className: "" })));
addEventListener("popstate", () => show(inAddress()));
addEventListener("hashchange", () => { if (inAddress() !== current) show(inAddress()); });

async function start() {
  state("Connecting…");
  try {
    const { data } = await api.models();
    byId("agent").textContent = data[0]?.id ?? "Agent";
    byId("sign-out").hidden = !api.hasToken();
    await sessions.refresh();
    await show(inAddress());
  } catch (problem) {
    fail(problem, start);
  }
}

start();
