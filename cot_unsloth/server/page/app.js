"use strict";
// The chat page. Text from a model is only ever set as text, never as HTML.

const el = (id) => document.getElementById(id);
const STORED = "conversation";
let messages = [];
let examples = [];
let running = null;  // the AbortController of the question that is being answered

function make(tag, name, text) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text !== undefined) node.textContent = text;
  return node;
}

function headers() {
  const key = el("key").value || sessionStorage.getItem("key");
  return {"Content-Type": "application/json", ...(key ? {Authorization: `Bearer ${key}`} : {})};
}

async function failure(response) {
  let message = `HTTP ${response.status}`;
  try { message = (await response.json()).error.message; } catch { /* not in the API's form */ }
  if (response.status === 401) { el("settings").open = true; el("key").focus(); }
  return new Error(message);
}

function number(id) {
  const value = el(id).value.trim();
  return value === "" ? undefined : Number(value);
}

function request(model) {
  const system = el("system").value.trim();
  const start = system ? [{role: "system", content: system}] : [];
  return {
    model, messages: [...start, ...messages], stream: true, stream_options: {include_usage: true},
    n: Math.max(1, number("votes") || 1), temperature: number("temperature"), max_tokens: number("tokens"),
    max_thinking_tokens: number("budget"), seed: number("seed"),
  };
}

// The events of a streamed answer.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const {value, done} = await reader.read();
    if (done) throw new Error("the server closed the connection in the middle of the answer");
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const data = part.replace(/^data: /, "");
      if (data === "[DONE]") return;
      yield JSON.parse(data);
    }
  }
}

// One answer on the page: thinking that folds when it is done, reflections marked in it, the output, and what to do with it.
class Answer {
  constructor(parent, title) {
    this.message = {role: "assistant", content: "", reasoning_content: ""};
    this.node = make("section", "answer");
    if (title) this.node.append(make("h2", "", title));
    this.details = make("details", "thinking");
    this.summary = make("summary", "", "Thinking…");
    this.thinking = make("pre");
    this.details.append(this.summary, this.thinking);
    this.details.hidden = true;
    this.details.open = true;
    this.content = make("p", "content");
    this.foot = make("p", "dim");
    this.node.append(this.details, this.content, this.foot);
    parent.append(this.node);
  }

  add(delta) {
    if (delta.reasoning_content) {
      this.message.reasoning_content += delta.reasoning_content;
      this.details.hidden = false;
      this.showThinking();
    }
    if (delta.content) {
      if (!this.message.content) this.fold();
      this.message.content += delta.content;
      this.content.textContent = this.message.content;
    }
  }

  // The text between <reflection> and </reflection> is marked; an open one may still be growing.
  showThinking() {
    const parts = this.message.reasoning_content.split(/<(\/?)reflection>/);
    this.thinking.replaceChildren();
    let inside = false;
    parts.forEach((part, at) => {
      if (at % 2) { inside = part === ""; return; }
      const text = inside ? part.trim() : part.replace(/^\n/, "");
      if (text) this.thinking.append(inside ? make("span", "reflection", text) : document.createTextNode(text));
    });
  }

  fold() {
    const text = this.message.reasoning_content;
    const reflections = text.split("<reflection>").length - 1;
    const lines = text.split("\n").filter((line) => line.trim()).length;
    this.summary.textContent = `Thought for ${lines} line${lines === 1 ? "" : "s"}` +
      (reflections ? `, ${reflections} reflection${reflections === 1 ? "" : "s"}` : "");
    this.details.open = false;
  }

  finish(reason) {
    if (!this.message.content) { this.summary.textContent = "Thinking, without an output"; }
    const copy = make("button", "small", "Copy");
    copy.type = "button";
    copy.onclick = async () => {
      await navigator.clipboard.writeText(this.message.content || this.message.reasoning_content);
      copy.textContent = "Copied";
    };
    this.foot.replaceChildren(copy, document.createTextNode(
      reason === "length" ? " cut off at the token limit" : reason === "stopped" ? " stopped" : ""));
  }

  fail(message) {
    const error = make("p", "error", message);
    error.setAttribute("role", "alert");
    this.node.append(error);
  }
}

// Ask one model; the answer that the conversation goes on with, or null if there is none.
async function ask(model, place, title, signal) {
  const body = request(model);
  const answers = [];
  const began = performance.now();
  const answer = (index) => (answers[index] ??= new Answer(place, body.n > 1 ? `${title || "Answer"} ${index + 1}` : title));
  answer(0);
  const reasons = {};
  let usage = null;
  try {
    const response = await fetch("/v1/chat/completions", {method: "POST", headers: headers(), body: JSON.stringify(body), signal});
    if (!response.ok) throw await failure(response);
    for await (const chunk of events(response)) {
      if (chunk.error) throw new Error(chunk.error.message);
      if (chunk.usage) usage = chunk.usage;
      for (const choice of chunk.choices) {
        answer(choice.index).add(choice.delta);
        if (choice.finish_reason) reasons[choice.index] = choice.finish_reason;
      }
      if (el("turns").scrollHeight - el("turns").scrollTop - el("turns").clientHeight < 200) scrollDown();
    }
  } catch (error) {
    if (error.name === "AbortError") answers.forEach((_, index) => { reasons[index] ??= "stopped"; });
    else { answers[0].fail(error.message); return null; }
  } finally {
    answers.forEach((one, index) => { if (!one.node.querySelector(".error")) one.finish(reasons[index]); });
  }
  const seconds = (performance.now() - began) / 1000;
  if (usage) {
    el("status").textContent = `${usage.completion_tokens} tokens in ${seconds.toFixed(1)} s, ` +
      `${(usage.completion_tokens / seconds).toFixed(0)} a second`;
  }
  if (body.n === 1) return answers[0].message;
  try {
    return await vote(answers, place, signal);
  } catch (error) {  // the answers are there: the conversation goes on with the first
    if (error.name !== "AbortError") answers[0].fail(error.message);
    return answers[0].message;
  }
}

// Which of several answers most agree on. The server decides which are equal: 1/2 and 0.5 are.
async function vote(answers, place, signal) {
  const texts = answers.map((one) => one.message.content);
  const response = await fetch("/votes", {method: "POST", headers: headers(), body: JSON.stringify({answers: texts}), signal});
  if (!response.ok) throw await failure(response);
  const groups = (await response.json()).groups;
  const table = make("table", "votes");
  const head = make("tr");
  for (const name of ["Votes", "Answer"]) {
    const cell = make("th", "", name);
    cell.scope = "col";
    head.append(cell);
  }
  table.append(make("caption", "dim", `Majority of ${texts.length}`), head);
  for (const group of groups) {
    const row = make("tr");
    row.append(make("td", "", String(group.members.length)), make("td", "", group.answer || "(none)"));
    table.append(row);
  }
  place.after(table);
  return groups.length ? answers[groups[0].members[0]].message : answers[0].message;
}

function scrollDown() { el("turns").scrollTop = el("turns").scrollHeight; }

function busy(is) {
  el("stop").disabled = !is;
  el("send").disabled = is;
  el("retry").disabled = is || !messages.length;
  el("turns").setAttribute("aria-busy", String(is));
  if (is) el("status").textContent = "Answering…";
  else if (el("status").textContent === "Answering…") el("status").textContent = "";
}

async function answer() {
  running = new AbortController();
  busy(true);
  const place = make("div", "answers");
  el("turns").append(place);
  scrollDown();
  const compared = el("compare").checked && !el("compare-label").hidden;
  const model = el("model").value, other = el("other").value;
  const conversation = messages;
  try {
    const jobs = [ask(model, place, compared ? model : "", running.signal)];
    if (compared) jobs.push(ask(other, place, other, running.signal));
    const [message] = await Promise.all(jobs);
    if (message) conversation.push(message);  // not to a new conversation, begun meanwhile
  } catch (error) {
    if (error.name !== "AbortError") new Answer(place, "").fail(error.message);
  } finally {
    running = null;
    busy(false);
    store();
    scrollDown();
  }
}

// What an empty conversation shows: a hint, and questions of the kind that the model was trained on.
function showStart() {
  const start = make("div");
  start.id = "start";
  start.append(make("p", "dim", "Ask a question. Thinking is shown while it is written, and folded when it is done."));
  if (examples.length) start.append(make("p", "dim", "Questions of the kind it was trained on:"));
  for (const text of examples) {
    const button = make("button", "example", text);
    button.type = "button";
    button.onclick = () => { el("question").value = text; send(); };
    start.append(button);
  }
  el("turns").replaceChildren(start);
}

async function listExamples() {
  const response = await fetch("/examples", {headers: headers()});
  if (!response.ok) return;  // without the key; listModels says so
  examples = (await response.json()).questions;
  if (!messages.length && el("start")) showStart();
}

function showUser(text) {
  el("start")?.remove();
  el("turns").append(make("div", "user", text));
}

function send() {
  const text = el("question").value.trim();
  if (!text || running) return;
  el("question").value = "";
  // A question that got no answer is not asked again beside the new one: many templates want the roles to alternate.
  if (messages.at(-1)?.role === "user") messages.pop();
  messages.push({role: "user", content: text});
  showUser(text);
  answer();
}

function retry() {
  if (running || !messages.length) return;
  if (messages.at(-1).role === "assistant") messages.pop();
  const seed = number("seed");
  if (seed !== undefined) el("seed").value = seed + 1;
  answer();
}

function store() { sessionStorage.setItem(STORED, JSON.stringify(messages)); }

function restore() {
  try { messages = JSON.parse(sessionStorage.getItem(STORED)) || []; } catch { messages = []; }
  for (const message of messages) {
    if (message.role === "user") { showUser(message.content); continue; }
    const place = make("div", "answers");
    el("turns").append(place);
    const shown = new Answer(place, "");
    shown.add(message);
    shown.finish();
  }
  if (!messages.length) showStart();
  scrollDown();
}

async function listModels() {
  const response = await fetch("/v1/models", {headers: headers()});
  if (!response.ok) {
    el("status").textContent = (await failure(response)).message;
    return;
  }
  const names = (await response.json()).data.map((model) => model.id);
  for (const id of ["model", "other"]) el(id).replaceChildren(...names.map((name) => new Option(name, name)));
  if (names.length > 1) {
    el("compare-label").hidden = false;
    el("other").value = names.includes("base") && names[0] !== "base" ? "base" : names[1];
  }
  el("status").textContent = "";
}

el("ask").onsubmit = (event) => { event.preventDefault(); send(); };
el("question").onkeydown = (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); send(); }
};
document.onkeydown = (event) => { if (event.key === "Escape") running?.abort(); };
el("stop").onclick = () => running?.abort();
el("retry").onclick = retry;
el("new").onclick = () => {
  running?.abort();
  messages = [];
  store();
  showStart();
  el("status").textContent = "";
  el("retry").disabled = true;
  el("question").focus();
};
el("key").onchange = () => { sessionStorage.setItem("key", el("key").value); listModels(); listExamples(); };
restore();
busy(false);
listModels();
listExamples();
