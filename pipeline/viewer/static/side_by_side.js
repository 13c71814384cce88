// Methods side by side: the scale of colours, and one token under all methods.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("scales");
  const panel = document.getElementById("token");
  const lists = [...document.querySelectorAll(".tokens")];
  const spans = lists.map((list) => [...list.children]);
  const place = new Map(lists.map((list, i) => [list, i]));
  const sampleOf = (list) => data.samples[Number(list.dataset.sample)];
  const rowOf = (list) => sampleOf(list).rows[Number(list.dataset.row)];
  let list = -1;
  let token = -1;
  let visited = -1;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };

  const number = (value) => {
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  };
  const percent = (value) => (value > 0 && value < 0.001 ? "<0.1%" : `${(100 * value).toFixed(1)}%`);

  const paint = (scale) => {
    lists.forEach((one, i) => {
      const looks = rowOf(one)[scale];
      spans[i].forEach((span, t) => {
        span.className = `t ${looks[t]}${span.classList.contains("same") ? " same" : ""}`;
      });
    });
    for (const end of document.querySelectorAll("[data-own]")) end.textContent = end.dataset[scale];
  };

  // What the gradient does to the sampled token, as a sign that needs no colour.
  const sign = (push) => {
    const cell = element("td", "");
    const [mark, text] = push > 0 ? ["▲", "likelier"] : push < 0 ? ["▼", "less likely"] : ["-", "nothing"];
    const shown = element("span", "", mark);
    shown.setAttribute("aria-hidden", "true");
    cell.title = text;
    cell.append(shown, element("span", "visually-hidden", text));
    return cell;
  };

  const render = () => {
    const sample = sampleOf(lists[list]);
    const title = element("h3");
    const piece = element("span", "piece", sample.pieces[token]);
    piece.dir = "ltr";
    title.append(piece, element("span", "muted small", `position ${token} of 0 to ${sample.ids.length - 1} · id ${sample.ids[token]}`));
    const table = element("table");
    const head = element("tr");
    for (const [text, look] of [["Method", ""], ["", ""], ["Size", "num"], ["of the response", "num"], ["Rate", "num"], ["Loss / N", "num"]]) {
      const cell = element("th", look, text);
      cell.scope = "col";
      head.append(cell);
    }
    table.append(element("thead"), element("tbody"));
    table.tHead.append(head);
    sample.rows.forEach((row, i) => {
      const line = element("tr", i === Number(lists[list].dataset.row) ? "here" : "");
      const name = element("th", "", data.methods[i]);
      name.scope = "row";
      const share = row.total > 0 ? percent(row.size[token] / row.total) : "-";
      line.append(
        name,
        sign(row.push[token]),
        element("td", "num", number(row.size[token])),
        element("td", "num", share),
        element("td", "num", number(row.push[token])),
        element("td", "num", number(row.loss[token])),
      );
      table.tBodies[0].append(line);
    });
    const wrap = element("div", "table-wrap");
    wrap.append(table);
    const foot = element("p", "foot", "Size: length of the gradient of L at this token's logits. Rate: growth of the sampled token's log-probability for a step of length 1 against that gradient, at this position alone.");
    panel.replaceChildren(title, wrap, foot);
  };

  const select = (which, index, focus) => {
    if (spans[which].length === 0) return;
    const next = Math.max(0, Math.min(spans[which].length - 1, index));
    if (list >= 0) {
      spans[list][token].setAttribute("aria-selected", "false");
      spans[list][token].tabIndex = -1;
      for (const span of document.querySelectorAll(".t.same")) span.classList.remove("same");
    }
    [list, token] = [which, next];
    const chosen = spans[which][next];
    chosen.setAttribute("aria-selected", "true");
    chosen.tabIndex = 0;
    lists.forEach((other, i) => {
      if (i !== which && other.dataset.sample === lists[which].dataset.sample) spans[i][next].classList.add("same");
    });
    if (focus) chosen.focus({ preventScroll: true });
    chosen.scrollIntoView({ block: "nearest" });
    render();
  };

  // Go through one method's tokens by size, largest first.
  const most = () => {
    const which = Math.max(0, list);
    const order = rowOf(lists[which]).size.map((value, i) => [value, i]).sort((a, b) => b[0] - a[0]);
    if (order.length === 0) return;
    const at = list === which && token === visited ? order.findIndex((entry) => entry[1] === token) : -1;
    visited = order[(at + 1) % order.length][1];
    select(which, visited, true);
  };

  const moves = {
    ArrowLeft: () => [list, token - 1],
    ArrowRight: () => [list, token + 1],
    ArrowUp: () => [Math.max(0, list - 1), token],
    ArrowDown: () => [Math.min(lists.length - 1, list + 1), token],
    Home: () => [list, 0],
    End: () => [list, spans[list].length - 1],
  };

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
      if (document.querySelector("dialog[open]") || lists.length === 0) return;
      if (event.target.closest(".tokens") && Object.hasOwn(moves, event.key)) select(...moves[event.key](), true);
      else if (event.key === "t") select(Math.max(0, list), Math.max(0, token), true);
      else if (event.key === "m") most();
      else return;
      event.preventDefault();
    },
    true,
  );
  for (const one of lists) {
    const which = place.get(one);
    one.addEventListener("click", (event) => {
      const index = spans[which].indexOf(event.target);
      if (index >= 0) select(which, index, true);
    });
    one.addEventListener("focusin", (event) => {
      const index = spans[which].indexOf(event.target);
      if (index >= 0 && (which !== list || index !== token)) select(which, index, false);
    });
    if (spans[which].length > 0) spans[which][0].tabIndex = 0;
  }
  form.addEventListener("change", () => paint(new FormData(form).get("scale")));
  form.addEventListener("submit", (event) => event.preventDefault());
})();
