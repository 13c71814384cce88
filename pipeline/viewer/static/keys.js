// Keyboard: the same on every page.
//   data-nav            entries that j and k (and the arrow keys, once one is focused) move through
//   data-key="x"        the key x clicks this element
//   a[rel=prev|next|up] the left and right arrow keys and u follow these links
"use strict";

(() => {
  const help = document.getElementById("help");

  const writing = (target) =>
    target instanceof Element && target.closest("input:not([type=radio]):not([type=checkbox]), select, textarea") !== null;

  const visible = (element) => element.getClientRects().length > 0;

  const move = (by) => {
    const entries = [...document.querySelectorAll("[data-nav]")].filter(visible);
    if (entries.length === 0) return false;
    const current = entries.indexOf(document.activeElement);
    const next = current < 0 ? (by > 0 ? 0 : entries.length - 1) : current + by;
    const entry = entries[Math.max(0, Math.min(entries.length - 1, next))];
    entry.focus();
    entry.scrollIntoView({ block: "nearest" });
    return true;
  };

  const follow = (relation) => {
    const link = document.querySelector(`a[rel~="${relation}"]`);
    if (link) link.click();
    return link !== null;
  };

  const toggleHelp = () => {
    if (help.open) help.close();
    else help.showModal();
    return true;
  };

  const inEntry = () => document.activeElement?.matches("[data-nav]");

  const keys = {
    j: () => move(1),
    k: () => move(-1),
    ArrowDown: () => inEntry() && move(1),
    ArrowUp: () => inEntry() && move(-1),
    ArrowLeft: () => follow("prev"),
    ArrowRight: () => follow("next"),
    u: () => follow("up"),
    "?": toggleHelp,
  };

  const click = (key) => {
    const element = document.querySelector(`[data-key="${CSS.escape(key)}"]`);
    if (element) element.click();
    return element !== null;
  };

  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey) return;
    if (writing(event.target)) return;
    const radio = event.target instanceof Element && event.target.matches("input[type=radio]");
    if (radio && event.key.startsWith("Arrow")) return;
    if (help.open && event.key !== "?") return;
    const known = Object.hasOwn(keys, event.key) ? keys[event.key]() : click(event.key);
    if (known) event.preventDefault();
  });

  document.getElementById("help-open").addEventListener("click", toggleHelp);
})();
