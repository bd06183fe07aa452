// Keeps a page up to date: the server sends the parts that have changed, and they are mended in place, so that neither
// focus, selection nor scroll position is lost. Without it every page is whole, as of when it was loaded.
"use strict";
(() => {
  const main = document.getElementById("main");
  if (!main.dataset.events) return;
  const pulse = document.getElementById("pulse");
  const news = document.getElementById("news");
  const SPEAK_EVERY = 30000, AGAIN_AFTER = 10000;
  const headline = () => main.querySelector("[id^=live_] .headline").textContent.replace(/\s+/g, " ").trim();
  let source = null, again = 0, spoken = Date.now(), said = headline(), over = false;

  // What is of one kind and has one data-key (rows and forms have) is the same thing, wherever it stands; nothing is
  // written over by another, or what is about to be pressed would come to mean something else.
  const kind = (node) => `${node.nodeName} ${node.dataset?.key ?? ""}`;

  function mend(old, fresh) {
    if (old.nodeType !== Node.ELEMENT_NODE) {
      if (old.data !== fresh.data) old.data = fresh.data;
      return;
    }
    for (const { name } of [...old.attributes]) if (name !== "open" && !fresh.hasAttribute(name)) old.removeAttribute(name);
    for (const { name, value } of fresh.attributes) if (old.getAttribute(name) !== value) old.setAttribute(name, value);
    mendInside(old, fresh);
  }

  function mendInside(old, fresh) {
    const left = [...old.childNodes];
    const wanted = [...fresh.childNodes].map((node) => {
      const at = left.findIndex((each) => kind(each) === kind(node));
      if (at < 0) return node;
      const [same] = left.splice(at, 1);
      mend(same, node);
      return same;
    });
    left.forEach((node) => node.remove());
    // A node that is moved loses focus and selection, so the one that has them stays, and others are moved around it.
    const has = (what) => wanted.find((node) => node.contains(what));
    const held = has(document.activeElement) ?? has(getSelection().anchorNode);
    let here = old.firstChild;
    for (const node of wanted) {
      while (node === held && here !== held) {
        const next = here.nextSibling;
        old.append(here);
        here = next;
      }
      if (node === here) here = here.nextSibling;
      else old.insertBefore(node, here);
    }
  }

  function renew(part, html) {
    const focused = document.activeElement;
    const fresh = document.createElement("template");
    fresh.innerHTML = html;
    mendInside(part, fresh.content);
    if (focused.isConnected) return;
    // Its button or its row is gone. The focus goes to where nothing can be pressed, and no further than it must.
    const heading = part.closest("section")?.querySelector("h2") ?? main.querySelector("h1");
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
  }

  // Said to those who hear the page: not each number, but now and then how it stands, and that it is over.
  function speak(always) {
    const now = Date.now(), words = headline();
    if (words === said || (!always && now - spoken < SPEAK_EVERY)) return;
    spoken = now;
    news.textContent = said = words;
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
        if (part) renew(part, html);
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
