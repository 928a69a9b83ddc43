"use strict";
// The browser of answers. Only the page in view is in the document, and text is only ever set as text.
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 20;
  const out = document.getElementById("rows"), count = document.getElementById("count");
  const back = document.getElementById("back"), next = document.getElementById("next");
  const el = (tag, cls, text) => {
    const node = document.createElement(tag);
    if (cls) node.className = cls;
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const option = (select, value, label) => { const o = el("option", "", label); o.value = value; select.append(o); };
  data.models.forEach((m, i) => option(form.elements.model, i, m.name));
  for (const key of ["qtype", "category", "ptype"]) {
    data.words[key].forEach((w, i) => { if (w) option(form.elements[key], i, w); });
    if (!data.words[key].some(Boolean)) form.elements[key].parentElement.hidden = true;
  }
  let page = 0, found = [];
  const image = (path) => data.thumbnails[path] ||
    (data.prefix && !/^\/|\\|(^|\/)\.\.(\/|$)|\0/.test(path) ? data.prefix + path.split("/").map(encodeURIComponent).join("/") : "");

  function select() {
    const model = data.models[+form.elements.model.value];
    const result = form.elements.result.value, text = form.elements.text.value.trim().toLowerCase();
    const want = ["qtype", "category", "ptype"].map((k) => form.elements[k].value);
    const last = model.variants[model.variants.length - 1];
    const base = model.variants.find((v) => v.name === "base"), lora = model.variants.find((v) => v.name === "lora");
    found = [];
    for (let i = 0; i < model.rows.length; i++) {
      const [question, truth, , qtype, category, ptype] = model.rows[i];
      if (want[0] !== "" && qtype !== +want[0] || want[1] !== "" && category !== +want[1] || want[2] !== "" && ptype !== +want[2]) continue;
      const right = last.right[i] === "1";
      if (result === "right" && !right || result === "wrong" && right) continue;
      if (result === "fixed" && !(base && lora && base.right[i] === "0" && lora.right[i] === "1")) continue;
      if (result === "broken" && !(base && lora && base.right[i] === "1" && lora.right[i] === "0")) continue;
      if (text && !question.toLowerCase().includes(text) && !truth.toLowerCase().includes(text) &&
          !model.variants.some((v) => v.answers[i].toLowerCase().includes(text))) continue;
      found.push(i);
    }
    page = 0;
    show();
  }

  function answer(label, value, cls, confidence) {
    const line = el("p", "a " + cls);
    line.append(el("span", "", label + (confidence === null || confidence === undefined ? "" : " " + Math.round(100 * confidence) + " %")), el("b", "", value || "(empty)"));
    return line;
  }

  function show() {
    const model = data.models[+form.elements.model.value];
    const pages = Math.max(1, Math.ceil(found.length / PAGE));
    const nodes = found.slice(page * PAGE, page * PAGE + PAGE).map((i) => {
      const [question, truth, path] = model.rows[i];
      const card = el("figure", "card"), caption = el("figcaption");
      const source = image(data.paths[path]), none = el("div", "noimage", "no image");
      if (source) {
        const image = el("img");
        image.loading = "lazy"; image.alt = "";
        image.addEventListener("error", () => image.replaceWith(none));
        image.src = source;
        card.append(image);
      } else card.append(none);
      caption.append(el("p", "q", question), answer("truth", truth, ""));
      for (const v of model.variants) caption.append(answer(v.label, v.answers[i], v.right[i] === "1" ? "yes" : "no", v.confidence && v.confidence[i]));
      card.append(caption);
      return card;
    });
    out.replaceChildren(...nodes);
    count.textContent = found.length.toLocaleString("en") + (found.length === 1 ? " question" : " questions") +
      " of " + model.rows.length.toLocaleString("en") + " · page " + (page + 1) + " of " + pages;
    back.disabled = page === 0;
    next.disabled = page >= pages - 1;
  }

  let timer = 0;
  form.addEventListener("input", (event) => {
    clearTimeout(timer);
    timer = setTimeout(select, event.target.name === "text" ? 150 : 0);
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  back.addEventListener("click", () => { page--; show(); });
  next.addEventListener("click", () => { page++; show(); });
  select();
})();
