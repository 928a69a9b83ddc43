"use strict";
// One question at a time, one key a verdict. Verdicts are kept in the browser under the sample's digest after every key, and saved
// as a file on demand. Text is only ever set as text.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const $ = (id) => document.getElementById(id);
  const KEYS = {r: "right", w: "wrong", c: "unseen", b: "bad"}, STORE = "audit:" + data.sample;
  const questions = data.questions, place = new Map(questions.map((q, i) => [q.id, i]));
  let state = {person: "", verdicts: {}, history: []}, at = 0, correcting = "", kept = true;

  const judged = () => Object.keys(state.verdicts).length;
  const valid = (id, v) => place.has(id) && v && Object.values(KEYS).includes(v.verdict);

  function adopt(found) {  // what a browser or a file holds may be damaged or somebody else's
    const verdicts = found && typeof found.verdicts === "object" && found.verdicts || {};
    for (const [id, v] of Object.entries(verdicts)) if (valid(id, v)) state.verdicts[id] = v;
    if (found && typeof found.person === "string" && found.person) state.person = found.person.slice(0, 40);
    const history = found && Array.isArray(found.history) ? found.history : [];
    state.history = [...new Set([...state.history, ...history, ...Object.keys(state.verdicts)])].filter((id) => id in state.verdicts);
  }

  function keep() {
    try { localStorage.setItem(STORE, JSON.stringify(state)); kept = true; problem(""); } catch {
      kept = false;
      problem("This browser does not keep the verdicts: save the file before you close the page.");
    }
  }

  function problem(text) { $("problem").textContent = text; $("problem").hidden = !text; }

  function next(from) {  // the next question without a verdict, wrapping around; -1 when all have one
    for (let step = 0; step < questions.length; step++) {
      const i = (from + step) % questions.length;
      if (!(questions[i].id in state.verdicts)) return i;
    }
    return -1;
  }

  function show() {
    const all = questions.length, n = judged(), finished = at < 0;
    $("fill").style.width = all ? 100 * n / all + "%" : "0";
    const wrong = Object.values(state.verdicts).filter((v) => v.verdict !== "right").length;
    $("count").textContent = n + " of " + all + " judged" + (n ? ", " + wrong + " not right" : "");
    $("card").hidden = $("ask").hidden = finished;
    $("done").hidden = !finished;
    $("undo").disabled = !state.history.length;
    if (finished) { $("save-done").focus(); return; }
    const q = questions[at], source = data.images[q.path];
    $("number").textContent = "Question " + (at + 1) + " of " + all;
    $("question").textContent = q.question;
    $("answer").textContent = q.answer;
    $("shown").hidden = !source;
    if (source) $("image").src = source;
    for (const b of document.querySelectorAll(".verdicts button")) b.classList.toggle("chosen", correcting !== "" && state.verdicts[q.id]?.verdict === b.dataset.verdict);
  }

  function reveal(id) {
    const q = id === undefined ? undefined : questions[place.get(id)], verdict = q && state.verdicts[id];
    $("reveal").hidden = !verdict;
    $("correct").hidden = !correcting;
    if (!verdict) return;
    const label = document.querySelector(`.verdicts button[data-verdict=${verdict.verdict}]`).firstChild.textContent.trim();
    $("said").textContent = (correcting ? "You said: " : "The last one, you said: ") + label.toLowerCase() + (verdict.answer ? ", it is " + verdict.answer : "");
    $("about").textContent = q.question + " – " + q.answer;
    $("others").replaceChildren(...q.others.map(([who, what]) => {
      const line = document.createElement("div"), dt = document.createElement("dt"), dd = document.createElement("dd");
      dt.textContent = who; dd.textContent = what;
      line.append(dt, dd);
      return line;
    }));
  }

  function judge(verdict) {
    if (at < 0) return;
    const id = questions[at].id;
    state.verdicts[id] = {verdict, at: new Date().toISOString()};
    state.history = [...state.history.filter((other) => other !== id), id];
    correcting = verdict === "wrong" ? id : "";
    keep();
    if (!correcting) at = next(at + 1);
    show();
    reveal(id);
    if (correcting) { $("correction").value = ""; $("correction").focus(); } else if (document.activeElement) document.activeElement.blur();
    if (at < 0) $("save-done").focus();
  }

  function corrected() {
    const answer = $("correction").value.trim().toLowerCase(), id = correcting;
    if (!id) return;
    if (answer) state.verdicts[id].answer = answer;
    correcting = "";
    keep();
    $("correction").blur();
    at = next(at + 1);
    show();
    reveal(id);
  }

  function undo() {
    const id = state.history.pop();
    if (id === undefined) return;
    delete state.verdicts[id];
    correcting = "";
    $("correction").blur();
    at = place.get(id);
    keep();
    show();
    reveal(state.history[state.history.length - 1]);
  }

  function skip() {
    if (correcting) { corrected(); return; }
    if (at >= 0) { at = next(at + 1); show(); }
  }

  function enlarge() {
    if ($("large").open) { $("large").close(); return; }
    if (at < 0 || $("shown").hidden) return;
    $("large-image").src = $("image").src;
    $("large").showModal();
  }

  function save() {
    const text = JSON.stringify({sample: data.sample, person: state.person, questions: questions.length, verdicts: state.verdicts}, null, 1);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(new Blob([text], {type: "application/json"}));
    link.download = "verdicts-" + (state.person.replace(/[^A-Za-z0-9]+/g, "-").replace(/^-|-$/g, "") || "unnamed") + ".json";
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  }

  async function load(file) {
    try {
      const found = JSON.parse(await file.text());
      if (found.sample !== data.sample) { problem("This file is about another sample (" + String(found.sample) + "), so nothing was loaded."); return; }
      adopt(found);
    } catch { problem("This is no file of verdicts, so nothing was loaded."); return; }
    keep();
    start();
  }

  function start() {
    correcting = "";
    $("person").value = state.person;
    at = next(0);
    show();
    reveal(state.history[state.history.length - 1]);
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const typing = event.target.tagName === "INPUT", key = event.key.toLowerCase();
    if (typing) {
      if (event.target === $("correction") && (event.key === "Escape" || event.key === "Backspace" && !event.target.value)) { event.preventDefault(); undo(); }
      else if (event.target === $("person") && (event.key === "Enter" || event.key === "Escape")) event.target.blur();
      return;
    }
    if ($("large").open && key !== "z" && !(key in KEYS)) return;
    if (key in KEYS) { if ($("large").open) $("large").close(); event.preventDefault(); if (!event.repeat) judge(KEYS[key]); }
    else if (key === "u" || event.key === "Backspace") { event.preventDefault(); undo(); }
    else if (key === "s" || event.key === "ArrowRight") { event.preventDefault(); skip(); }
    else if (key === "z") { event.preventDefault(); enlarge(); }
    else if (key === "f") { event.preventDefault(); save(); }
  });
  for (const b of document.querySelectorAll(".verdicts button")) b.addEventListener("click", () => judge(b.dataset.verdict));
  for (const id of ["undo", "undo-done"]) $(id).addEventListener("click", undo);
  for (const id of ["save", "save-done"]) $(id).addEventListener("click", save);
  $("skip").addEventListener("click", skip);
  $("shown").addEventListener("click", enlarge);
  $("large").addEventListener("click", () => $("large").close());
  $("correct").addEventListener("submit", (event) => { event.preventDefault(); corrected(); });
  $("person").addEventListener("input", () => { state.person = $("person").value.trim(); keep(); });
  $("load").addEventListener("change", (event) => { if (event.target.files[0]) load(event.target.files[0]); event.target.value = ""; });
  window.addEventListener("storage", (event) => {  // the same page in another tab: what is judged there counts here
    if (event.key !== STORE || !event.newValue) return;
    state = {person: "", verdicts: {}, history: []};
    adopt(JSON.parse(event.newValue));
    start();
  });
  window.addEventListener("beforeunload", (event) => { if (!kept && judged()) event.preventDefault(); });
  let found = null;
  try { found = JSON.parse(localStorage.getItem(STORE)); } catch { /* damaged or not readable: as if nothing were there */ }
  adopt(found);
  keep();
  start();
})();
