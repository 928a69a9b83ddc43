"use strict";
// The browser of answers. Only the page in view is in the document, and text is only ever set as text. Its state is in the
// address: #browser?model=blip&qtype=color&result=wrong
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20, OPINIONS = ["seen", "blind", "witness"], KINDS = ["qtype", "category", "ptype", ...OPINIONS], FIELDS = ["model", "of", "result", ...KINDS, "sure", "sort", "truth", "answer", "product", "text"];
  const {questions, words} = data, fields = form.elements;
  const out = document.getElementById("rows"), count = document.getElementById("count");
  const back = document.getElementById("back"), next = document.getElementById("next"), large = document.getElementById("large");
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const option = (select, value, label) => { const o = el("option", "", label); o.value = value; select.append(o); };
  for (const m of data.models) option(fields.model, m.name, m.name);
  const variants = new Map(data.models.flatMap((m) => m.variants.map((v) => [v.name, v.label])));
  for (const [name, label] of [...variants].reverse()) option(fields.of, name, label);
  for (const key of KINDS) {
    for (const w of words[key]) if (w) option(fields[key], w, w);
    if (!words[key].some(Boolean)) fields[key].parentElement.hidden = true;
  }
  let page = 0, found = [];
  const model = () => data.models.find((m) => m.name === fields.model.value) || data.models[0];
  const judged = (m) => m.variants.find((v) => v.name === fields.of.value) || m.variants[m.variants.length - 1];
  const image = (path) => data.prefix && !/^\/|\\|(^|\/)\.\.(\/|$)|\0/.test(path) ? data.prefix + path.split("/").map(encodeURIComponent).join("/") : "";
  const small = (path) => data.thumbnails[path] || image(path);

  // Numbers of the words that a test holds for: questions are then compared by number.
  const numbers = (list, test) => new Set(list.flatMap((w, i) => test(w) ? [i] : []));
  const lower = (name) => fields[name].value.trim().toLowerCase();
  const given = (name) => { const v = lower(name); return v === "" ? null : numbers(words.plain, (w) => (w || "(empty)") === v || words.answer[words.plain.indexOf(w)].toLowerCase() === v); };

  function select() {
    const m = model(), v = judged(m), result = fields.result.value, text = lower("text"), product = lower("product");
    const base = m.variants.find((x) => x.name === "base"), lora = m.variants.find((x) => x.name === "lora");
    const kinds = KINDS.filter((k) => fields[k].value).map((k) => [questions[k], words[k].indexOf(fields[k].value)]);
    const truth = given("truth"), answer = given("answer");
    const bin = fields.sure.value === "" ? -1 : Number(fields.sure.value);
    const ofProduct = product && numbers(words.product, (w) => w.toLowerCase().includes(product));
    const holding = text && numbers(words.answer, (w) => w.toLowerCase().includes(text));
    found = [];
    for (let i = 0; i < m.rows.length; i++) {
      const q = m.rows[i], right = v.right[i] === "1";
      if (kinds.some(([column, want]) => column[q] !== want)) continue;
      if (result === "right" && !right || result === "wrong" && right) continue;
      if ((result === "fixed" || result === "broken" || result === "changed") && !(base && lora)) continue;
      if (result === "fixed" && !(base.right[i] === "0" && lora.right[i] === "1")) continue;
      if (result === "broken" && !(base.right[i] === "1" && lora.right[i] === "0")) continue;
      if (result === "changed" && words.plain[base.answers[i]] === words.plain[lora.answers[i]]) continue;
      if (truth && !truth.has(questions.truth[q]) || answer && !answer.has(v.answers[i])) continue;
      if (bin >= 0 && !(v.confidence && v.confidence[i] !== null && Math.min(9, Math.floor(10 * v.confidence[i])) === bin)) continue;
      if (ofProduct && !ofProduct.has(questions.product[q])) continue;
      if (holding && !holding.has(questions.truth[q]) && !m.variants.some((x) => holding.has(x.answers[i])) &&
          !questions.text[q].toLowerCase().includes(text)) continue;
      found.push(i);
    }
    const sort = fields.sort.value, sure = (i) => v.confidence && v.confidence[i] !== null ? v.confidence[i] : -1;
    if (sort === "wrong") found.sort((a, b) => v.right[a] - v.right[b] || sure(b) - sure(a));
    if (sort === "unsure") found.sort((a, b) => sure(a) - sure(b));
  }

  function answer(label, value, cls, confidence) {
    const line = el("p", "a " + cls);
    line.append(el("span", "", label + (confidence === null || confidence === undefined ? "" : " " + Math.round(100 * confidence) + " %")), el("b", "", value || "(empty)"));
    return line;
  }

  function button(text, title, action) {
    const node = el("button", "", text);
    node.type = "button"; node.title = title;
    node.addEventListener("click", () => action(node));
    return node;
  }

  async function copy(node, text) {
    try { await navigator.clipboard.writeText(text); } catch {  // no clipboard without a secure origin
      const field = el("textarea", "", text);
      document.body.append(field); field.select(); document.execCommand("copy"); field.remove();
    }
    node.textContent = "copied";
    setTimeout(() => { node.textContent = text; }, 900);
  }

  function enlarge(path, alt) {
    const node = el("img");
    node.alt = alt;
    node.addEventListener("error", () => { if (data.thumbnails[path] && node.src !== data.thumbnails[path]) node.src = data.thumbnails[path]; });
    node.src = image(path) || small(path);
    large.replaceChildren(node, el("p", "", alt));
    large.showModal();
  }

  function card(m, i) {
    const q = m.rows[i], path = words.path[questions.path[q]], text = questions.text[q], product = words.product[questions.product[q]];
    const node = el("figure", "card"), caption = el("figcaption"), none = el("div", "noimage", "no image"), source = small(path);
    if (source) {
      const img = el("img");
      img.loading = "lazy"; img.alt = "";
      img.addEventListener("error", () => img.parentElement.replaceWith(none));
      img.src = source;
      const open = button("", "Enlarge", () => enlarge(path, text));
      open.className = "enlarge"; open.append(img);
      node.append(open);
    } else node.append(none);
    caption.append(el("p", "q", text), answer("truth", words.answer[questions.truth[q]], ""));
    for (const v of m.variants) caption.append(answer(v.label, words.answer[v.answers[i]], v.right[i] === "1" ? "yes" : "no", v.confidence && v.confidence[i]));
    const ids = el("p", "ids");
    ids.append(button(questions.id[q], "Copy the question's id", (b) => copy(b, questions.id[q])),
      button(product, "All questions about this product", () => { fields.product.value = product; changed(); }));
    caption.append(ids);
    node.append(caption);
    return node;
  }

  function show() {
    const m = model(), pages = Math.max(1, Math.ceil(found.length / PAGE));
    page = Math.min(page, pages - 1);
    out.replaceChildren(...found.slice(page * PAGE, page * PAGE + PAGE).map((i) => card(m, i)));
    count.textContent = found.length.toLocaleString("en") + (found.length === 1 ? " question" : " questions") +
      " of " + m.rows.length.toLocaleString("en") + " · page " + (page + 1) + " of " + pages;
    back.disabled = page === 0;
    next.disabled = page >= pages - 1;
  }

  function keep() {
    const state = new URLSearchParams();
    for (const name of FIELDS) if (fields[name].value && fields[name].selectedIndex !== 0) state.set(name, fields[name].value);
    if (page) state.set("page", page + 1);
    history.replaceState(null, "", "#browser?" + state);
  }

  function changed() { page = 0; select(); show(); keep(); }
  function turn(by) { page += by; show(); keep(); }

  function restore() {
    const [place, query] = location.hash.split("?"), mine = place === "#browser" && query !== undefined;
    const state = new URLSearchParams(mine ? query : "");
    if (mine || !found.length) {
      form.reset();
      for (const name of FIELDS) if (state.has(name)) fields[name].value = state.get(name);
      for (const field of form.querySelectorAll("select")) if (field.selectedIndex < 0) field.selectedIndex = 0;
      page = Math.max(0, (parseInt(state.get("page"), 10) || 1) - 1);
      select(); show();
    }
    if (mine) document.getElementById("browser").scrollIntoView();
  }

  function csv() {
    const m = model(), cell = (x) => '"' + String(x).replace(/^[=+\-@\t\r]/, "'$&").replace(/"/g, '""') + '"';  // no formulas
    const head = ["id", "product", "image", "question_type", "category", "product_type", ...OPINIONS, "question", "truth",
      ...m.variants.flatMap((v) => [v.name + "_answer", v.name + "_right", v.name + "_confidence"])];
    const lines = found.map((i) => {
      const q = m.rows[i];
      return [questions.id[q], ...["product", "path", ...KINDS].map((k) => words[k][questions[k][q]]), questions.text[q], words.answer[questions.truth[q]],
        ...m.variants.flatMap((v) => [words.answer[v.answers[i]], v.right[i], v.confidence && v.confidence[i] !== null ? v.confidence[i] : ""])];
    });
    return [head, ...lines].map((line) => line.map(cell).join(",")).join("\r\n") + "\r\n";
  }

  document.getElementById("export").addEventListener("click", () => {
    const file = el("a");
    file.href = URL.createObjectURL(new Blob([csv()], {type: "text/csv"}));
    file.download = model().name + "-answers.csv";
    file.click();
    setTimeout(() => URL.revokeObjectURL(file.href), 10000);
  });
  let timer = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(changed, event.target.tagName === "INPUT" ? 150 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  document.getElementById("clear").addEventListener("click", () => { form.reset(); changed(); });
  large.addEventListener("click", () => large.close());
  back.addEventListener("click", () => turn(-1));
  next.addEventListener("click", () => turn(1));
  window.addEventListener("hashchange", restore);
  restore();
})();
