// The service's public API, which is OpenAI's: nothing here is for this page alone.

const TOKEN = "token";
let token = sessionStorage.getItem(TOKEN);

/** What the service answered instead of what it was asked for. */
export class Problem extends Error {
  constructor(message, { status = 0, code = null, retryAfter = 0, signIn = null } = {}) {
    super(message);
    Object.assign(this, { status, code, retryAfter, signIn });
  }
}

export function setToken(value) {
  token = value;
  if (value) sessionStorage.setItem(TOKEN, value);
  else sessionStorage.removeItem(TOKEN);
}

export const hasToken = () => Boolean(token);

function headers(more) {
  return { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...more };
}

/** The response of the service. Raises Problem. */
async function ask(method, path, { body, signal, more = {}, keepalive = false } = {}) {
  let answer;
  try {
    answer = await fetch(`v1/${path}`, {
      method,
      signal,
      keepalive,
      credentials: "same-origin",
      cache: "no-store",
      headers: headers(body === undefined ? more : { "Content-Type": "application/json", ...more }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(navigator.onLine ? "The service cannot be reached." : "You are offline.");
  }
  if (answer.ok) return answer;
  let told = {};
  try {
    told = (await answer.json()).error ?? {};
  } catch { /* a proxy, perhaps */ }
  throw new Problem(told.message ?? `The service answered ${answer.status}.`, {
    status: answer.status,
    code: told.code,
    retryAfter: Number(answer.headers.get("Retry-After")) || 0,
    signIn: answer.headers.get("X-Sign-In"),
  });
}

const json = async (...request) => (await ask(...request)).json();
const place = (id) => `conversations/${encodeURIComponent(id)}`;
const query = (fields) => new URLSearchParams(Object.entries(fields).filter(([, value]) => value)).toString();

export const models = () => json("GET", "models");
export const conversations = (after) => json("GET", `conversations?${query({ limit: 30, after })}`);
export const conversation = (id) => json("GET", place(id));
export const items = (id, after) => json("GET", `${place(id)}/items?${query({ limit: 100, after })}`);
export const rename = (id, title) => json("POST", place(id), { body: { title } });
export const remove = (id) => ask("DELETE", place(id), { keepalive: true });
export const fork = (id, item) => json("POST", `${place(id)}/fork`, { body: { before_item: item } });
export const cancel = (response) => json("POST", `responses/${response}/cancel`);
export const everything = async () => (await ask("GET", "export")).blob();

/** The events of a turn, one after another. */
export async function* respond(body, key, signal) {
  const more = { "Idempotency-Key": key };
  const answer = await ask("POST", "responses", { body: { ...body, stream: true }, signal, more });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const blocks = (rest + value.replaceAll("\r", "")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const data = block.split("\n").filter((line) => line.startsWith("data:")).map((line) => line.slice(5).trim());
        if (data.length) yield JSON.parse(data.join("\n"));
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem("The connection was lost.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
