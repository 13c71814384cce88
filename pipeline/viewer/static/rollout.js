// The rollout page: what the heat map shows, and the panel of one token.
"use strict";

(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.getElementById("layers");
  const scale = document.getElementById("scale");
  const tokens = document.getElementById("tokens");
  const panel = document.getElementById("token");
  const spans = [...tokens.children];
  const layers = new Map(data.layers.map((layer) => [layer.key, layer]));
  const fetched = new Map();
  let shown = data.shown;
  let selected = -1;
  let waiting = 0;
  let opened = false;
  let visited = -1;

  const element = (name, className, text) => {
    const made = document.createElement(name);
    if (className) made.className = className;
    if (text !== undefined) made.textContent = text;
    return made;
  };
  const svg = (name, attributes) => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    return made;
  };

  const number = (value) => {
    if (value === null || value === undefined) return "-";
    if (value === 0) return "0";
    const size = Math.abs(value);
    return size >= 1e-3 && size < 1e5 ? String(Number(value.toPrecision(3))) : value.toExponential(1);
  };
  const percent = (value) => (value > 0 && value < 0.001 ? "<0.1%" : `${(100 * value).toFixed(1)}%`);

  const look = (kind, level) => {
    if (level === null) return "hx";
    if (kind !== "around") return `h${level}`;
    return level < 0 ? `n${-level}` : `p${level}`;
  };

  const ramp = (kind) => {
    const levels = kind === "around" ? [-16, -12, -8, -4, 0, 4, 8, 12, 16] : [0, 4, 8, 12, 16, 19, 23, 27, 31];
    const strip = svg("svg", { viewBox: "0 0 9 1", preserveAspectRatio: "none", "aria-hidden": "true" });
    levels.forEach((level, i) => strip.append(svg("rect", { class: look(kind, level), x: i, width: 1, height: 1 })));
    return strip;
  };

  const legend = (layer) => {
    const unit = layer.unit ? ` ${layer.unit}` : "";
    const name = element("strong", "", layer.label);
    if (layer.missing) {
      scale.replaceChildren(name, element("span", "muted", `not recorded: ${layer.missing}`));
      return;
    }
    const low = layer.kind === "around" ? 2 * layer.pale - layer.strong : layer.pale;
    const more = layer.extreme === null ? "" : ` and beyond (up to ${number(layer.extreme)})`;
    const engine = layer.key === "student_logprob" && data.values.student_logprob === null;
    const unused = layer.key === "advantage" && (data.route === "sdpo" || data.route === "none");
    const source = engine ? ", as the sampling engine reported it" : unused ? "; this route makes no use of it" : "";
    scale.replaceChildren(
      name,
      element("span", "num", number(low)),
      ramp(layer.kind),
      element("span", "num", `${number(layer.strong)}${unit}${more}`),
      element("span", "muted", `${layer.meaning}${source}`),
    );
  };

  const paint = (key) => {
    shown = key;
    const layer = layers.get(key);
    spans.forEach((span, i) => {
      span.className = `t ${look(layer.kind, layer.levels[i])}`;
    });
    legend(layer);
  };

  const bar = (share) => {
    const strip = svg("svg", { viewBox: "0 0 100 4", preserveAspectRatio: "none", "aria-hidden": "true" });
    const width = Math.max(0, Math.min(100, 100 * share)).toFixed(2);
    strip.append(svg("rect", { class: "base", width: 100, height: 4 }), svg("rect", { width, height: 4 }));
    return strip;
  };

  const choice = (name, share, detail, className) => {
    const row = element("li", `choice ${className}`);
    const piece = element("span", "piece", name);
    piece.dir = "ltr";
    row.append(piece, element("span", "num", percent(share)), bar(share));
    if (detail.id !== undefined) piece.append(element("span", "id", detail.id));
    row.title = detail.title;
    return row;
  };

  const kept = (entry, place, pieces) => {
    const sampled = entry[0] === data.ids[selected];
    const title = `id ${entry[0]}, log-probability ${number(entry[place])} nats${sampled ? ", the sampled token" : ""}`;
    const row = choice(pieces[entry[0]], Math.exp(entry[place]), { id: entry[0], title }, sampled ? "sampled" : "");
    if (sampled) row.append(element("span", "visually-hidden", "the sampled token"));
    return row;
  };

  // The kept tokens after the first five: one line, to be opened where they are at hand.
  const others = (entries, share, place, pieces, all) => {
    const count = data.kept - 5;
    const line = choice(`${count} other kept`, share, { title: "the other kept tokens together" }, "other");
    if (!all) return line;
    const item = element("li");
    const fold = element("details");
    const summary = element("summary", "choice other");
    summary.append(...line.childNodes);
    const list = element("ol");
    list.append(...entries.map((entry) => kept(entry, place, pieces)));
    fold.append(summary, list);
    fold.open = opened;
    fold.addEventListener("toggle", () => {
      opened = fold.open;
      for (const other of panel.querySelectorAll("details")) other.open = opened;
    });
    item.append(fold);
    return item;
  };

  const column = (who, place, top, pieces, tail, all) => {
    const box = element("section");
    box.append(element("h4", "", who));
    if (top.some((entry) => entry[place] === null)) {
      box.append(element("p", "foot", `The K log-probabilities: ${data.missing.student_top}.`));
      return box;
    }
    const list = element("ol");
    const sorted = [...top].sort((a, b) => b[place] - a[place]);
    const few = sorted.slice(0, 5);
    list.append(...few.map((entry) => kept(entry, place, pieces)));
    const outside = tail === null ? 0 : Math.exp(tail);
    const rest = 1 - outside - few.reduce((sum, entry) => sum + Math.exp(entry[place]), 0);
    if (few.length < data.kept) list.append(others(sorted.slice(5), Math.max(0, rest), place, pieces, all));
    list.append(choice("outside the K", outside, { title: `log of the mass outside the ${data.kept} kept tokens: ${number(tail)} nats` }, "other"));
    box.append(list);
    return box;
  };

  const NUMBERS = [
    ["student_logprob", "student log-prob"],
    ["teacher_logprob", "teacher log-prob"],
    ["sampled_logprob", "engine log-prob"],
    ["old_logprob", "old log-prob"],
    ["student_entropy", "student entropy"],
    ["teacher_entropy", "teacher entropy"],
    ["weight", "weight"],
    ["survival", "survival"],
    ["reward_weight", "weight of the advantage"],
    ["credit", "Â/A"],
    ["jsd", "divergence"],
    ["loss", "loss"],
    ["share", "share of |loss|"],
  ];

  const numbers = () => {
    const list = element("dl", "numbers");
    for (const [key, label] of NUMBERS) {
      const values = data.values[key];
      if (values === null) continue;
      const pair = element("div");
      const text = key === "share" ? percent(values[selected]) : number(values[selected]);
      pair.append(element("dt", "", label), element("dd", "", text));
      list.append(pair);
    }
    return list;
  };

  const foot = () => {
    const reasons = new Map();
    for (const [key, label] of [...NUMBERS, ["teacher_top", "student and teacher top-k"]]) {
      const why = data.missing[key];
      if (!why || (data.values[key] ?? null) !== null) continue;
      reasons.set(why, [...(reasons.get(why) ?? []), label]);
    }
    return [...reasons].map(([why, labels]) => element("p", "foot", `Not recorded: ${labels.join(", ")}: ${why}.`));
  };

  const heading = () => {
    const title = element("h3");
    const piece = element("span", "piece", data.pieces[data.ids[selected]]);
    piece.dir = "ltr";
    title.append(piece, element("span", "muted small", `position ${selected} of 0 to ${data.ids.length - 1} · id ${data.ids[selected]}`));
    return title;
  };

  const render = () => {
    const parts = [heading(), numbers()];
    const more = fetched.get(selected);
    if (data.held !== "none" || more) {
      const top = more ? more.top : data.tops[selected];
      const pieces = more ? more.pieces : data.pieces;
      const all = Boolean(more) || data.held === "all";
      const tops = element("div", "tops");
      tops.append(
        column("Student", 1, top, pieces, data.tails.student[selected], all),
        column("Teacher", 2, top, pieces, data.tails.teacher[selected], all),
      );
      parts.push(tops);
      const support = `The ${data.kept} kept tokens are the student's likeliest${all ? "." : "; the page holds the top 5 of each."}`;
      parts.push(element("p", "foot", support));
    }
    panel.replaceChildren(...parts, ...foot());
  };

  // A live page asks for all K of the token where the reader stays.
  const complete = () => {
    const base = panel.dataset.at;
    clearTimeout(waiting);
    if (!base || fetched.has(selected)) return;
    const position = selected;
    waiting = setTimeout(async () => {
      try {
        const answer = await fetch(`${base}${position}/`);
        if (!answer.ok) return;
        fetched.set(position, await answer.json());
        if (selected === position) render();
      } catch {
        // The server has ended; the top 5 stay.
      }
    }, 150);
  };

  const select = (index, focus) => {
    const next = Math.max(0, Math.min(spans.length - 1, index));
    if (spans.length === 0) return;
    if (selected >= 0) {
      spans[selected].setAttribute("aria-selected", "false");
      spans[selected].tabIndex = -1;
    } else spans[0].tabIndex = -1;
    selected = next;
    spans[next].setAttribute("aria-selected", "true");
    spans[next].tabIndex = 0;
    if (focus) spans[next].focus({ preventScroll: true });
    spans[next].scrollIntoView({ block: "nearest" });
    history.replaceState(null, "", `#token-${next}`);
    render();
    complete();
  };

  // The token nearest above or below: by where they stand, as lines break where they break.
  const vertical = (down) => {
    const here = spans[selected].getBoundingClientRect();
    let best = selected;
    let least = Infinity;
    const step = down ? 1 : -1;
    for (let i = selected + step; i >= 0 && i < spans.length; i += step) {
      const there = spans[i].getBoundingClientRect();
      const away = Math.abs(there.top - here.top);
      if (away < 6) continue;
      const distance = Math.abs(there.left - here.left) + away * 50;
      if (distance < least) [best, least] = [i, distance];
      else if (away > 80) break;
    }
    return best;
  };

  // Go through the tokens by the size of what is shown, largest first.
  const most = () => {
    const layer = layers.get(shown);
    const values = data.values[shown] ?? (shown === "student_logprob" ? data.values.sampled_logprob : null);
    if (layer.missing || !values) return;
    const order = values.map((value, i) => [Math.abs(value ?? 0), i]).sort((a, b) => b[0] - a[0]);
    const place = selected === visited ? order.findIndex((entry) => entry[1] === selected) : -1;
    visited = order[(place + 1) % order.length][1];
    select(visited, true);
  };

  const moves = {
    ArrowLeft: () => selected - 1,
    ArrowRight: () => selected + 1,
    ArrowUp: () => vertical(false),
    ArrowDown: () => vertical(true),
    Home: () => 0,
    End: () => spans.length - 1,
  };

  const writing = (target) => target.closest("input:not([type=radio]), textarea, select") !== null;

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || !(event.target instanceof Element)) return;
      if (document.querySelector("dialog[open]")) return;
      if (tokens.contains(event.target) && Object.hasOwn(moves, event.key)) select(moves[event.key](), true);
      else if (event.key === "t" && !writing(event.target)) select(Math.max(0, selected), true);
      else if (event.key === "m" && !writing(event.target)) most();
      else return;
      event.preventDefault();
    },
    true,
  );
  tokens.addEventListener("click", (event) => {
    const index = spans.indexOf(event.target);
    if (index >= 0) select(index, true);
  });
  tokens.addEventListener("focusin", (event) => {
    const index = spans.indexOf(event.target);
    if (index >= 0 && index !== selected) select(index, false);
  });
  form.addEventListener("change", () => paint(new FormData(form).get("layer")));
  form.addEventListener("submit", (event) => event.preventDefault());

  paint(shown);
  if (spans.length > 0) spans[0].tabIndex = 0;
  const asked = /^#token-(\d{1,6})$/.exec(location.hash);
  if (asked) select(Number(asked[1]), false);
})();
