"use strict";
(() => {
  document.documentElement.classList.add("js");

  const make = (tag, name, ...inside) => {
    const e = document.createElement(tag);
    if (name) e.className = name;
    e.append(...inside);
    return e;
  };
  const eps = (which) => make("span", "", "ε", make("sub", "", which));

  // Folded on the screen, unfolded on paper and without this script.
  const folds = [...document.querySelectorAll("details")];
  const paper = matchMedia("print");
  let before = null;
  const unfold = () => {
    if (before) return;
    before = folds.map((d) => d.open);
    folds.forEach((d) => { d.open = true; });
  };
  const fold = () => {
    if (before) folds.forEach((d, k) => { d.open = before[k]; });
    before = null;
  };
  folds.forEach((d) => { d.open = false; });
  if (paper.matches) unfold();
  paper.addEventListener("change", () => (paper.matches ? unfold() : fold()));
  addEventListener("beforeprint", unfold);
  addEventListener("afterprint", fold);

  for (const box of document.querySelectorAll(".explorer")) {
    explore(box, JSON.parse(box.querySelector("script").textContent));
  }

  function explore(box, data) {
    const figures = [...box.querySelectorAll(".map")];
    const curves = [...box.querySelectorAll("[data-curves]")];
    const readout = box.querySelector(".readout");
    const form = box.querySelector(".controls");
    const cells = new Map(figures.map((f) => [f, [...f.querySelectorAll(".c")]]));
    const columns = data.x.length, rows = data.w.length;
    let [row, column] = data.at;

    const chosen = () => ({
      kind: form.elements.kind ? form.elements.kind.value : data.kinds[0],
      model: form.elements.model ? form.elements.model.value : "0",
    });
    const visible = () => figures.filter((f) => !f.hidden);

    for (const f of figures) {
      const svg = f.querySelector("svg");
      svg.setAttribute("role", "grid");
      for (const name of ["mark under", "mark"]) {
        const mark = document.createElementNS("http://www.w3.org/2000/svg", "rect");
        mark.setAttribute("class", name);
        svg.insertBefore(mark, svg.querySelector(".kl"));
      }
      svg.querySelectorAll(".cells > g").forEach((g) => g.setAttribute("role", "row"));
      cells.get(f).forEach((c, k) => {
        c.setAttribute("role", "gridcell");
        c.setAttribute("tabindex", "-1");
        c.setAttribute("aria-label", spoken(f, Math.floor(k / columns), k % columns));
      });
      const at = (event) => {
        const k = cells.get(f).indexOf(event.target);
        if (k >= 0) pick(Math.floor(k / columns), k % columns);
      };
      svg.addEventListener("pointerover", at);
      svg.addEventListener("click", at);
      svg.addEventListener("focusin", at);
      svg.addEventListener("keydown", (event) => {
        const steps = { ArrowUp: [1, 0], ArrowDown: [-1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1],
          Home: [0, -columns], End: [0, columns], PageUp: [rows, 0], PageDown: [-rows, 0] };
        const step = steps[event.key];
        if (!step) return;
        event.preventDefault();
        const limit = (v, most) => Math.min(Math.max(v, 0), most - 1);
        pick(limit(row + step[0], rows), limit(column + step[1], columns));
        cells.get(f)[row * columns + column].focus();
      });
    }
    form.addEventListener("change", show);
    show();

    function spoken(f, i, j) {
      const m = data.models[f.dataset.model];
      const parts = [`eps x ${data.x[j]}, eps w ${data.w[i]}`];
      for (const kind of ["attacked", "shared", "certified"]) {
        if (m[kind]) parts.push(`${kind} ${m[kind].a[i][j]} percent, ${m[kind].low[i][j]} to ${m[kind].high[i][j]}`);
      }
      if (m.gap) parts.push(`not known ${m.gap[i][j]} percent`);
      return parts.concat(m.notes[`${i},${j}`] || []).join("; ");
    }

    function show() {
      const { kind, model } = chosen();
      const several = model === "all";
      box.classList.toggle("many", several);
      box.classList.toggle("one", !several);
      for (const f of figures) f.hidden = f.dataset.kind !== kind || !(several || f.dataset.model === model);
      for (const c of curves) c.hidden = c.dataset.curves !== model;
      for (const b of box.querySelectorAll(".bars > [data-palette]")) b.hidden = (b.dataset.palette === "gap") !== (kind === "gap");
      pick(row, column);
    }

    function pick(i, j) {
      [row, column] = [i, j];
      for (const f of visible()) {
        const all = cells.get(f), cell = all[i * columns + j];
        for (const c of all) c.setAttribute("tabindex", c === cell ? "0" : "-1");
        for (const mark of f.querySelectorAll(".mark")) {
          for (const side of ["x", "y", "width", "height"]) mark.setAttribute(side, cell.getAttribute(side));
        }
      }
      const { model } = chosen();
      readout.replaceChildren(...(model === "all" ? every(i, j) : single(data.models[model], i, j)));
    }

    function radii(i, j) {
      return make("p", "radii", eps("x"), ` = ${data.x[j]}${data.unitX}, `, eps("w"), ` = ${data.w[i]}${data.unit}`);
    }

    function share(m, kind, i, j) {
      const k = m[kind];
      return k ? [`${k.a[i][j]}\u00a0%`, `${k.low[i][j]} to ${k.high[i][j]}\u00a0%`] : ["–", ""];
    }

    function single(m, i, j) {
      const body = make("tbody", "");
      const line = (name, kind, value, interval) => {
        const head = make("th", "", ...(kind ? [make("span", `key ${kind}`)] : []), name);
        head.scope = "row";
        const row = make("tr", "", head, make("td", "number", value), make("td", "number quiet", interval));
        row.dataset.kind = name.split(" ")[0].toLowerCase();
        body.append(row);
      };
      const proven = m.shared || m.certified;
      const low = proven ? parseFloat(proven.a[i][j]) : 0;
      const high = m.attacked ? parseFloat(m.attacked.a[i][j]) : 100;
      if (m.attacked) line("Attacked: at most", m.certified ? "" : "open", ...share(m, "attacked", i, j));
      if (m.shared) line("Shared: at least", "proven", ...share(m, "shared", i, j));
      if (m.certified) line("Certified: at least", m.shared ? "" : "proven", ...share(m, "certified", i, j));
      if (m.gap) line("Gap: not known", "open", `${m.gap[i][j]}\u00a0%`, "");
      if (!m.attacked) line("Not certified", "open", `${(100 - low).toFixed(1)}\u00a0%`, "");
      if (m.attacked) line("Broken", "broken", `${m.broken[i][j]}\u00a0%`, "");
      const bar = make("div", "sandwich");
      bar.setAttribute("aria-hidden", "true");
      for (const [kind, width] of [["proven", low], ["open", high - low], ["broken", 100 - high]]) {
        const part = make("span", kind);
        part.style.width = `${Math.max(width, 0)}%`;
        bar.append(part);
      }
      const parts = [make("h3", "", m.title), radii(i, j), bar, make("table", "", body), make("p", "quiet", data.interval)];
      if (m.seeds && m.seeds.length > 1) {
        for (const kind of ["attacked", "shared", "certified"]) {
          if (m[kind]) parts.push(make("p", "quiet", `${kind}, by seed: ${m.seeds.map((_, s) => m[kind].by[s][i][j]).join(", ")}`));
        }
      }
      const notes = m.notes[`${i},${j}`] || [];
      if (notes.length) parts.push(make("ul", "notes", ...notes.map((n) => make("li", "", n))));
      return parts;
    }

    function every(i, j) {
      const kinds = ["attacked", "shared", "certified"].filter((k) => data.models.some((m) => m[k]));
      const head = make("tr", "", make("th", "", "Model"), ...kinds.flatMap((k) => [make("th", "number", k), make("th", "number", "")]));
      const body = make("tbody", "");
      for (const m of data.models) {
        const name = make("th", "", m.title);
        name.scope = "row";
        body.append(make("tr", "", name, ...kinds.flatMap((k) => {
          const [value, interval] = share(m, k, i, j);
          return [make("td", "number", value), make("td", "number quiet", interval)];
        })));
      }
      return [radii(i, j), make("div", "scroll", make("table", "", make("thead", "", head), body)),
        make("p", "quiet", data.interval)];
    }
  }
})();
