// Shows one question, keeps the next one loaded, and sends verdicts in the order in which they were given.
// Texts of models are set as textContent alone, never as HTML.
"use strict";

const csrf = document.querySelector("meta[name=csrf]").content;
const byId = (id) => document.getElementById(id);
const RETRY_MS = 1000;
const POLL_MS = 5000; // for the progress of others; also says that the page is open
const WAIT_MS = 500; // while there is no question

let current = null; // the question that is shown
let ahead = null; // the question that is loaded
let shownAt = 0;
let sending = Promise.resolve(); // of all verdicts so far
let unsent = 0;
let lost = false; // the server does not answer

class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// Calls the server until it answers. The same verdict twice is written once, so it may be sent again.
async function call(path, body) {
  for (;;) {
    let reply;
    try {
      reply = await fetch(path, {
        method: body === undefined ? "GET" : "POST",
        headers: body === undefined ? {} : { "content-type": "application/json", "x-csrf-token": csrf },
        body: body === undefined ? undefined : JSON.stringify(body),
      });
    } catch {
      lost = true;
      say("The page cannot reach the server. It tries again.");
      await sleep(RETRY_MS);
      continue;
    }
    if (lost) say("");
    lost = false;
    if (reply.status === 429 || reply.status >= 502) {
      await sleep(RETRY_MS);
      continue;
    }
    const found = await reply.json().catch(() => ({}));
    if (reply.status === 401) location.reload();
    if (!reply.ok) throw new Refused(reply.status, found.error || `status ${reply.status}`);
    return found;
  }
}

function say(text) {
  byId("message").textContent = text;
  byId("message").hidden = !text;
}

function show(question) {
  current = question;
  byId("question").hidden = !question;
  byId("waiting").hidden = Boolean(question);
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !question;
  if (!question) return;
  for (const part of ["prompt", "left", "right"]) byId(part).textContent = question[part];
  byId("question").dataset.id = question.id;
  scrollTo(0, 0);
  shownAt = performance.now();
}

async function load() {
  show((await call("/api/next")).question);
  await loadAhead();
}

async function loadAhead() {
  if (!current) return;
  const found = (await call(`/api/next?ahead=1&besides=${current.id}`)).question;
  ahead = unsent === 0 && current && found && found.id !== current.id ? found : null;
}

// The next question is shown before the server knows. If somebody else has it by now, another takes its place.
async function confirm() {
  if (!current) return load();
  const found = (await call("/api/show", { question: current.id })).question;
  if (unsent > 0) return;
  if (!found || found.id !== current.id) show(found);
  await loadAhead();
}

function inOrder(work) {
  sending = sending.then(work).catch((error) => say(error.message));
}

function choose(choice) {
  if (!current) return;
  const verdict = { question: current.id, choice, seconds: (performance.now() - shownAt) / 1000 };
  unsent += 1;
  say("");
  show(ahead);
  ahead = null;
  inOrder(async () => {
    try {
      report(await call("/api/answer", verdict));
    } finally {
      unsent -= 1;
    }
  });
  inOrder(async () => {
    if (unsent === 0) await confirm();
  });
}

function undo() {
  say("");
  inOrder(async () => {
    show((await call("/api/undo", {})).question);
    await loadAhead();
    report(await call("/api/progress"));
  });
}

function report(facts) {
  const parts = [`${facts.yours} answers of yours`];
  if (facts.budget) parts.unshift(`${facts.labels} of ${facts.budget} labels`);
  if (facts.win_rate !== null) parts.push(`win rate of the model ${facts.win_rate.toFixed(2)}`);
  byId("progress").textContent = parts.join(" · ");
}

async function poll() {
  for (;;) {
    inOrder(async () => {
      if (!current && unsent === 0) await load();
      report(await call("/api/progress"));
    });
    await sending;
    await sleep(current ? POLL_MS : WAIT_MS);
  }
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat) return;
  for (const button of document.querySelectorAll("[data-keys]")) {
    if (button.dataset.keys.split(" ").includes(event.key)) {
      event.preventDefault();
      button.click();
    }
  }
});
for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
byId("undo").addEventListener("click", undo);
poll();
