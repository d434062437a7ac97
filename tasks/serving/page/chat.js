// The page: a conversation is a list of turns, kept in this tab's sessionStorage; each is drawn from its record.
import { Fault, complete, served } from "./api.js";
import { make, write } from "./text.js";

const at = (id) => document.getElementById(id);
const say = (words) => (at("status").textContent = words);
const key = () => sessionStorage.getItem("key");
const settings = at("settings");
const fields = [...settings.elements].filter((field) => field.name);
const kept = JSON.parse(sessionStorage.getItem("conversation") ?? "{}");
let turns = kept.turns ?? [];
let model = null; // what GET /v1/models said last
let later = 0; // the timer of the next look at what is served
let running = null; // the turn that is being answered, where its text goes, and how to stop it

function save() {
  const entered = Object.fromEntries(fields.map((field) => [field.name, field.value]));
  try {
    sessionStorage.setItem("conversation", JSON.stringify({ turns, entered, draft: at("prompt").value }));
  } catch {
    say("the conversation is too long to be kept across a reload");
  }
}

// ---- what is served

async function refresh(signal) {
  model = await served(key(), signal);
  const { id, version, digest, alias, device, context } = model;
  at("version").textContent = `${id}/${version}`;
  document.title = `${id}/${version} - vinoflow`;
  const facts = [make("code", { title: digest }, digest.slice(0, 12)), alias, device, context && `context ${context}`];
  at("facts").replaceChildren(...facts.filter(Boolean).map((fact) => make("span", {}, fact)));
}

async function look() {
  clearTimeout(later);
  await refresh().catch((error) => {
    model = null;
    later = error.seconds && setTimeout(look, error.seconds * 1000); // it is loading
    at("facts").replaceChildren(error.message, " ", make("button", { type: "button", onclick: look }, "Try again"));
    if (!later) say(error.message);
    if (error.status === 401) askKey();
  });
}

/* An answer names its version before its text comes, and before anybody asks the server again. */
function heard(turn, who) {
  draw(Object.assign(turn, who));
  if (who.version === at("version").textContent) return;
  at("version").textContent = who.version;
  look();
  if (changedFrom(turn)) say(`${who.version} answers now`);
}

function changedFrom(turn) {
  const before = turns.slice(0, turns.indexOf(turn)).findLast((other) => other.version)?.version;
  return turn.version && before !== turn.version && before;
}

// ---- how a turn looks

function figures(turn) {
  const full = !turn.limit || turn.tokens < turn.limit;
  const ending = {
    length: full ? `cut at the context length ${turn.context}` : `cut at max_tokens ${turn.limit}`,
    stopped: turn.text ? "stopped" : "stopped before the first token",
    content_filter: "cut by a content filter",
  }[turn.ending];
  return [
    turn.version,
    turn.digest && make("code", { title: turn.digest }, turn.digest.slice(0, 12)),
    turn.ttftMs && `first token ${Math.round(turn.ttftMs)} ms`,
    turn.speed && `${turn.speed.toFixed(turn.speed < 10 ? 1 : 0)} tokens/s`,
    turn.tokens && `${turn.tokens} token${turn.tokens === 1 ? "" : "s"}`,
    ending && make("strong", {}, ending),
  ].filter(Boolean).map((figure) => make("span", {}, figure));
}

function actions(turn, said) {
  const again = () => settingsHold() && run(turn);
  const copy = async () => {
    try {
      await navigator.clipboard.writeText(turn.text); // there is no clipboard without TLS from another host
      say("copied");
    } catch {
      getSelection().selectAllChildren(said);
      say("selected: copy it with Ctrl+C");
    }
  };
  const button = (words, onclick, className = "") => make("button", { type: "button", onclick, className }, words);
  return [...(turn.text ? [button("Copy", copy)] : []), button(turn.fault ? "Retry" : "Regenerate", again, "again")];
}

function draw(turn) {
  const place = turns.indexOf(turn);
  if (place < 0) return; // of a conversation that is over
  const live = turn === running?.turn;
  const said = make("div", { className: live ? "said live" : "said" });
  write(said, turn.text);
  if (live) running.said = said;
  const line = (className, ...children) => make("p", { className }, ...children);
  const part = (className, title, ...children) =>
    make("section", { className }, make("h3", { className: "unseen" }, title), ...children);
  const before = changedFrom(turn);
  const change = [make("strong", {}, `${turn.version} answers from here`), ` (before: ${before})`];
  const below = live ? [] : [line("figures", ...figures(turn)), line("actions", ...actions(turn, said))];
  const view = make("article", { className: "turn", ariaBusy: String(live) },
    part("asked", "You", make("p", { dir: "auto" }, turn.prompt)),
    ...(before ? [line("changed", ...change)] : []),
    part("answer", "Model", said, ...(turn.fault ? [line("fault", turn.fault)] : []), ...below));
  at("turns").children[place]?.remove();
  at("turns").insertBefore(view, at("turns").children[place] ?? null);
  at("empty").hidden = true;
}

function follow(change) {
  const page = document.documentElement;
  const below = page.scrollHeight - page.scrollTop - page.clientHeight;
  change();
  if (below < 80) page.scrollTop = page.scrollHeight; // unless the reader has scrolled away
}

// ---- asking

function messages(turn) {
  const said = (role, content) => ({ role, content });
  const system = fields.find((field) => field.name === "system").value.trim();
  // a question without an answer is left out: chat templates want the two to take turns
  const past = turns.slice(0, turns.indexOf(turn)).filter((other) => other.text);
  const before = past.flatMap(({ prompt, text }) => [said("user", prompt), said("assistant", text)]);
  return [...(system ? [said("system", system)] : []), ...before, said("user", turn.prompt)];
}

function sampling() {
  const set = fields.filter((field) => field.type === "number" && field.value);
  return Object.fromEntries(set.map((field) => [field.name, field.valueAsNumber]));
}

async function run({ prompt }, place = turns.length - 1) {
  if (running) return;
  const chosen = sampling();
  const turn = { prompt, text: "", ending: "stopped", limit: chosen.max_tokens }; // stopped, if the page is left now
  const stopper = new AbortController();
  turns[place] = turn;
  running = { turn, stop: () => stopper.abort() };
  const paint = () => follow(() => ((running.frame = 0), write(running.said, turn.text)));
  [at("send").hidden, at("stop").hidden] = [true, false];
  at("prompt").focus();
  say("answering");
  draw(turn);
  document.documentElement.scrollTop = document.documentElement.scrollHeight;
  try {
    if (!model) await refresh(stopper.signal);
    turn.context = model.context;
    const told = await complete({ model: model.id, messages: messages(turn), ...chosen }, {
      key: key(),
      signal: stopper.signal,
      onStart: (who) => heard(turn, who),
      onText: (text, ttftMs) => {
        Object.assign(turn, { text, ttftMs });
        running.frame ||= requestAnimationFrame(paint);
      },
    });
    Object.assign(turn, told);
    say(`answered: ${turn.tokens} tokens`);
  } catch (error) {
    if (stopper.signal.aborted) say("stopped");
    else failed(turn, error);
  }
  cancelAnimationFrame(running.frame);
  running = null;
  follow(() => draw(turn));
  if (document.activeElement === at("stop")) at("prompt").focus();
  [at("send").hidden, at("stop").hidden] = [false, true];
  save();
}

function failed(turn, error) {
  const wait = error.seconds && !error.message.includes("try again") ? `; try again in ${error.seconds} s` : "";
  turn.fault = error instanceof Fault ? error.message + wait : `The answer could not be read: ${error.message}`;
  turn.ending = "failed";
  turn.locked = error.status === 401;
  say(turn.fault);
  if (turn.locked) askKey();
}

function settingsHold() {
  if (settings.checkValidity()) return true;
  at("panel").open = true; // the browser tells the fault at its field, which must be seen
  return settings.reportValidity();
}

function askKey() {
  at("unlock").hidden = false;
  at("key").focus();
}

// ---- what the reader does

function send() {
  const prompt = at("prompt").value.trim();
  if (!prompt || running || !settingsHold()) return;
  at("prompt").value = "";
  run({ prompt }, turns.length);
}

function startAnew() {
  running?.stop();
  turns = [];
  at("turns").replaceChildren();
  at("empty").hidden = false;
  at("prompt").focus();
  say("new conversation");
  save();
}

function showSet() {
  const system = fields.some((field) => field.name === "system" && field.value.trim()) ? ["system prompt"] : [];
  at("set").textContent = [...system, ...Object.entries(sampling()).map((set) => set.join(" "))].join(", ");
}

async function unlock() {
  sessionStorage.setItem("key", at("key").value);
  at("key").value = "";
  at("unlock").hidden = true;
  at("prompt").focus();
  await look();
  if (model && turns.at(-1)?.locked) run(turns.at(-1));
}

for (const [form, does] of [["composer", send], ["settings", settingsHold], ["unlock", unlock]])
  at(form).addEventListener("submit", (event) => (event.preventDefault(), does()));
at("prompt").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
settings.addEventListener("input", () => (showSet(), save()));
document.addEventListener("keydown", (event) => event.key === "Escape" && running?.stop());
document.addEventListener("visibilitychange", () => document.hidden || running || look());
at("stop").addEventListener("click", () => running?.stop());
at("new").addEventListener("click", startAnew);
addEventListener("pagehide", save);

for (const field of fields) field.value = kept.entered?.[field.name] ?? "";
at("prompt").value = kept.draft ?? "";
turns.forEach(draw);
showSet();
at("prompt").focus();
look();
