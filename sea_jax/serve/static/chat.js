// Sends the conversation, shows the answer as it is written, or two answers to choose between.
// Texts are set as textContent alone, never as HTML. The conversation is kept by this tab, not by the server.
"use strict";

const csrf = document.querySelector("meta[name=csrf]").content;
const byId = (id) => document.getElementById(id);
const KEY = "sea_jax_conversation";
const RETRY_MS = 1000;

let turns = JSON.parse(sessionStorage.getItem(KEY) || "[]");
let pair = null; // two answers that wait for a choice
let busy = false;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

function bubble(role, text) {
  const article = document.createElement("article");
  article.className = role;
  article.textContent = text.trim();
  byId("turns").append(article);
  article.scrollIntoView({ block: "end" });
  return article;
}

function keep(role, content) {
  turns.push({ role, content });
  sessionStorage.setItem(KEY, JSON.stringify(turns));
}

function setBusy(value) {
  busy = value;
  byId("send").disabled = busy || pair !== null;
}

// Returns the reply once the server takes the request: it may have no room, or too many of this user's.
async function post(path, body) {
  for (;;) {
    let reply;
    try {
      reply = await fetch(path, {
        method: "POST",
        headers: { "content-type": "application/json", "x-csrf-token": csrf },
        body: JSON.stringify(body),
      });
    } catch {
      say("The page cannot reach the server. It tries again.");
      await sleep(RETRY_MS);
      continue;
    }
    if (reply.status === 429 || reply.status >= 502) {
      say("Many people are waiting. The page tries again.");
      await sleep(RETRY_MS);
      continue;
    }
    say("");
    if (reply.status === 401) location.reload();
    if (!reply.ok) {
      const found = await reply.json().catch(() => ({}));
      throw new Error(found.error || `status ${reply.status}`);
    }
    return reply;
  }
}

async function* events(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n\n");
    rest = lines.pop();
    for (const line of lines) yield JSON.parse(line.slice("data: ".length));
  }
}

async function answer() {
  setBusy(true);
  let shown = null;
  let text = "";
  let ended = false;
  try {
    for await (const event of events(await post("/api/chat", { messages: turns }))) {
      if (event.two) showPair(event.two);
      if (event.error) throw new Error(event.error);
      if (event.part !== undefined) {
        shown = shown || bubble("assistant open", "");
        text += event.part;
        shown.textContent = text.trimStart();
        shown.scrollIntoView({ block: "end" });
      }
      ended = ended || event.two !== undefined || event.end !== undefined;
    }
    if (!ended) throw new Error("The answer broke off.");
    if (shown) {
      shown.className = "assistant";
      keep("assistant", text.trim() || "…");
    }
  } catch (error) {
    if (shown) shown.remove();
    const failed = turns.pop();
    sessionStorage.setItem(KEY, JSON.stringify(turns));
    byId("turns").lastElementChild?.remove();
    if (!byId("text").value) byId("text").value = failed.content;
    say(error.message);
  }
  setBusy(false);
}

// While a choice is due, there is nothing to write.
function showPairOnly(value) {
  byId("pair").hidden = !value;
  byId("ask").hidden = value;
}

function showPair(two) {
  pair = two;
  byId("left").textContent = two.left.trim();
  byId("right").textContent = two.right.trim();
  showPairOnly(true);
  byId("pair").scrollIntoView({ block: "end" });
}

async function choose(choice) {
  if (!pair) return;
  const { duel, left, right } = pair;
  pair = null;
  showPairOnly(false);
  const chosen = (choice === "right" ? right : left).trim() || "…";
  bubble("assistant", chosen);
  keep("assistant", chosen);
  setBusy(busy);
  try {
    await post("/api/choose", { duel, choice });
  } catch (error) {
    say(error.message);
  }
}

byId("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("text").value.trim();
  if (!text || busy || pair) return;
  byId("text").value = "";
  say("");
  bubble("user", text);
  keep("user", text);
  answer();
});
byId("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) byId("ask").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.target === byId("text") || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  for (const button of document.querySelectorAll("[data-choice]")) {
    if (pair && button.dataset.key === event.key) choose(button.dataset.choice);
  }
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
byId("new").addEventListener("click", () => {
  if (busy) return;
  turns = [];
  pair = null;
  sessionStorage.removeItem(KEY);
  byId("turns").replaceChildren();
  showPairOnly(false);
  say("");
  setBusy(false);
});
for (const turn of turns) bubble(turn.role, turn.content);
