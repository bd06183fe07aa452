// Keeps a page up to date: the server sends the parts that have changed, and they are mended in place, so that neither
// focus, selection nor scroll position is lost. Without it every page is whole, as of when it was loaded.
"use strict";
(() => {
  const main = document.getElementById("main");
  if (!main.dataset.events) return;
  const pulse = document.getElementById("pulse");
  const news = document.getElementById("news");
  const SPEAK_EVERY = 30000, AGAIN_AFTER = 10000;
  let source = null, again = 0, spoken = Date.now(), over = false;

  function mend(old, fresh) {
    if (old.nodeType !== fresh.nodeType || old.nodeName !== fresh.nodeName) return old.replaceWith(fresh);
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    mendInside(old, fresh);
  }

  function mendInside(old, fresh) {
    const before = [...old.childNodes], after = [...fresh.childNodes];
    after.forEach((node, at) => at < before.length ? mend(before[at], node) : old.append(node));
    before.slice(after.length).forEach((node) => node.remove());
  }

  // Said to those who hear the page: not each number, but now and then how it stands, and that it is over.
  function speak(always) {
    if (!always && Date.now() - spoken < SPEAK_EVERY) return;
    spoken = Date.now();
    news.textContent = main.querySelector(".headline").textContent.replace(/\s+/g, " ").trim();
  }

  function show(word) {
    pulse.hidden = false;
    pulse.textContent = word;
    pulse.dataset.is = word;
  }

  function leave() {
    clearTimeout(again);
    if (source) source.close();
  }

  // A page that nobody looks at asks for nothing: browsers give one server few connections.
  function begin() {
    leave();
    if (over || document.hidden) return;
    const own = source = new EventSource(main.dataset.events);
    own.addEventListener("open", () => show("live"));
    own.addEventListener("error", () => {
      const gaveUp = own.readyState === EventSource.CLOSED;
      show(gaveUp ? "not live" : "reconnecting");
      // A browser tries no more after an answer that is no stream, and a proxy or a store may be back soon.
      if (gaveUp) again = setTimeout(begin, AGAIN_AFTER);
    });
    own.addEventListener("parts", ({ data }) => {
      for (const [name, html] of Object.entries(JSON.parse(data))) {
        const part = document.getElementById(name);
        const fresh = document.createElement("template");
        fresh.innerHTML = html;
        if (part) mendInside(part, fresh.content);
      }
      speak(false);
    });
    own.addEventListener("ended", () => {
      over = true;
      leave();
      pulse.hidden = true;
      const stale = document.getElementById("stale");
      if (stale) stale.hidden = false;
      speak(true);
    });
  }

  document.addEventListener("visibilitychange", begin);
  begin();
})();
