// The step page: filters (kept in the address), the card of a rollout, arrow keys in the grid.
"use strict";

(() => {
  const filters = document.getElementById("filters");
  const left = document.getElementById("left");
  let rollouts = [];
  let columns = [];
  let groups = 0;

  const read = () => {
    ({ rollouts, columns, groups } = JSON.parse(document.getElementById("data").textContent));
  };

  const wanted = () => {
    const chosen = {};
    for (const [key, value] of new FormData(filters)) if (value !== "") chosen[key] = value;
    return chosen;
  };

  const matches = (rollout, chosen) =>
    Object.entries(chosen).every(([key, value]) =>
      key === "text" ? rollout.text.includes(value.toLowerCase()) : rollout.is[key] === value,
    );

  const number = (count) => count.toLocaleString("en-US");

  const apply = () => {
    const chosen = wanted();
    let seen = 0;
    let tiles = 0;
    for (const tile of document.querySelectorAll(".tile")) {
      let some = false;
      for (const cell of tile.querySelectorAll(".cell")) {
        const fits = matches(rollouts[Number(cell.dataset.i)], chosen);
        cell.classList.toggle("out", !fits);
        cell.toggleAttribute("data-nav", fits);
        some ||= fits;
        seen += fits;
      }
      tile.classList.toggle("out", !some);
      tiles += some;
    }
    left.textContent = `${number(seen)} of ${number(rollouts.length)} rollouts, ${number(tiles)} of ${number(groups)} questions`;
    rove();
    return chosen;
  };

  const remember = () => {
    const chosen = new URLSearchParams(apply()).toString();
    history.replaceState(null, "", chosen ? `#${chosen}` : location.pathname + location.search);
  };

  const restore = () => {
    if (location.hash.startsWith("#group-")) return apply();
    const chosen = new URLSearchParams(location.hash.slice(1));
    for (const field of filters.elements) if (field.name) field.value = chosen.get(field.name) ?? "";
    for (const field of filters.querySelectorAll("select")) if (field.selectedIndex < 0) field.value = "";
    return apply();
  };

  // One cell of the grid is in the order of the Tab key; the arrow keys move to the others.
  const rove = (to) => {
    const cells = [...document.querySelectorAll(".cell")];
    const current = to ?? cells.find((cell) => !cell.classList.contains("out"));
    for (const cell of cells) cell.tabIndex = cell === current ? 0 : -1;
  };

  const neighbour = (cell, key) => {
    const cells = [...document.querySelectorAll(".cell[data-nav]")];
    const place = cells.indexOf(cell);
    if (key === "ArrowLeft") return cells[place - 1];
    if (key === "ArrowRight") return cells[place + 1];
    const here = cell.getBoundingClientRect();
    const below = key === "ArrowDown";
    let best;
    let least = Infinity;
    for (const other of cells) {
      const there = other.getBoundingClientRect();
      const down = (there.top - here.top) * (below ? 1 : -1);
      if (down < 8) continue;
      const distance = down * 4 + Math.abs(there.left - here.left);
      if (distance < least) [best, least] = [other, distance];
    }
    return best;
  };

  const show = (cell) => {
    const card = document.getElementById("card");
    const rollout = rollouts[Number(cell.dataset.i)];
    for (const other of document.querySelectorAll(".cell.shown")) other.classList.remove("shown");
    cell.classList.add("shown");
    const title = document.createElement("h3");
    title.className = "mono";
    title.textContent = rollout.id;
    const pairs = document.createElement("dl");
    pairs.className = "pairs";
    columns.forEach((label, i) => {
      if (rollout.card[i] === null) return;
      const pair = document.createElement("div");
      const name = document.createElement("dt");
      const value = document.createElement("dd");
      name.textContent = label;
      value.textContent = rollout.card[i];
      value.dir = "auto";
      pair.append(name, value);
      pairs.append(pair);
    });
    card.replaceChildren(title, pairs);
  };

  const cellOf = (event) => (event.target instanceof Element ? event.target.closest(".cell") : null);

  document.addEventListener("pointerover", (event) => {
    const cell = cellOf(event);
    if (cell) show(cell);
  });
  document.addEventListener("focusin", (event) => {
    const cell = cellOf(event);
    if (!cell) return;
    show(cell);
    rove(cell);
  });
  document.addEventListener(
    "keydown",
    (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
      if (event.key === "/" && !event.target.closest("input, select")) {
        filters.elements.text.focus();
        event.preventDefault();
      }
      const cell = cellOf(event);
      if (!cell || !event.key.startsWith("Arrow")) return;
      event.preventDefault();
      neighbour(cell, event.key)?.focus();
    },
    true,
  );
  filters.addEventListener("input", remember);
  filters.addEventListener("submit", (event) => event.preventDefault());
  filters.addEventListener("reset", () => setTimeout(remember));
  window.addEventListener("hashchange", restore);
  document.addEventListener("srpo:refresh", () => {
    read();
    apply();
  });
  read();
  restore();
})();
