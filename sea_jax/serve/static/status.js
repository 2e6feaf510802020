// Sends what an operator asks for, and shows the page anew.
"use strict";

const csrf = document.querySelector("meta[name=csrf]").content;
const byId = (id) => document.getElementById(id);

async function operate(action) {
  const token = byId("token") ? byId("token").value : "";
  const reply = await fetch("/api/operate", {
    method: "POST",
    headers: { "content-type": "application/json", "x-csrf-token": csrf },
    body: JSON.stringify({ action, token, version: Number(byId("version").value) }),
  });
  if (reply.ok) return location.reload();
  const found = await reply.json().catch(() => ({}));
  byId("message").textContent = found.error || `status ${reply.status}`;
  byId("message").hidden = false;
}

for (const button of document.querySelectorAll("[data-action]")) {
  button.addEventListener("click", (event) => {
    event.preventDefault();
    operate(button.dataset.action);
  });
}
