// A running training's pages follow it: ask for the small state, and when it has changed fetch
// this page again and put in what is new. Switches, scroll position and focus stay as they are.
//   <body data-live="/state.json">  the page follows the runs
//   <div id="x" data-live>          is replaced by the element of the same id
//   <script id="data">              likewise; then `srpo:refresh` is sent to the document
"use strict";

(() => {
  const address = document.body.dataset.live;
  if (!address) return;
  const status = document.getElementById("live");
  const often = 2000;
  const seldom = 10000;
  let known = null;
  let updated = "";

  const say = (text, kind) => {
    status.hidden = text === "";
    status.textContent = text;
    status.dataset.kind = kind;
  };

  const focused = () => {
    const element = document.activeElement;
    const href = element?.getAttribute("href");
    const id = element?.id;
    return () => {
      if (document.activeElement === element) return;
      const again = id
        ? document.getElementById(id)
        : href && [...document.querySelectorAll("[data-live] a")].find((a) => a.getAttribute("href") === href);
      if (again) again.focus({ preventScroll: true });
    };
  };

  const refresh = async () => {
    const answer = await fetch(location.pathname + location.search, { cache: "no-store" });
    if (!answer.ok) throw new Error(String(answer.status));
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
    const restore = focused();
    for (const element of document.querySelectorAll("[data-live][id], script#data")) {
      const other = fresh.getElementById(element.id);
      if (other && !other.isEqualNode(element)) element.replaceWith(document.adoptNode(other));
    }
    restore();
    document.dispatchEvent(new CustomEvent("srpo:refresh"));
  };

  const ask = async () => {
    let wait = often;
    try {
      if (!document.hidden) {
        const answer = await fetch(address, { cache: "no-store" });
        if (!answer.ok) throw new Error(String(answer.status));
        const text = await answer.text();
        if (known !== null && text !== known) {
          await refresh();
          updated = `updated ${new Date().toLocaleTimeString()}`;
        }
        known = text;
        say(updated, "going");
      }
    } catch {
      say("the viewer has stopped", "stopped");
      wait = seldom;
    }
    setTimeout(ask, wait);
  };

  ask();
})();
