// @ts-check
// What a page needs of its browser and Streamlit does not give. It shows nothing.
//
// `scheme` tells the server when the colours are others than it drew charts for: Streamlit runs no
// page again when a visitor, or the system in the evening, changes them.
//
// And one press of Back leaves a page. Streamlit pushes an entry for the page that is opened and
// another when that page writes into its address what it has chosen by itself; the second one takes
// the first one's place here. What somebody changes by hand stays an entry of its own.

import { component } from "./dom.js";

let arrived = 0;
let touched = -1;
let path = "";

function watchAddress() {
  if (path) return;
  path = location.pathname;
  const push = history.pushState.bind(history);
  history.pushState = (state, unused, url) => {
    const to = new URL(url ?? location.href, location.href).pathname;
    if (to === location.pathname && touched < arrived) {
      history.replaceState(state, unused, url);
      return;
    }
    if (to !== location.pathname) arrived = performance.now();
    push(state, unused, url);
  };
  for (const kind of ["pointerdown", "keydown"]) {
    addEventListener(kind, (event) => {
      // Who leaves by a link changes nothing, though the page may still be writing.
      const leaves = event.target instanceof Element && event.target.closest("a[href]");
      if (!leaves) touched = performance.now();
    }, { capture: true });
  }
  addEventListener("popstate", () => { arrived = performance.now(); });
}

class Page {
  constructor() {
    watchAddress();
    this.seen = "";
    this.requested = "";
    this.app = document.querySelector(".stApp");
    this.watch = new MutationObserver(() => this.look());
    if (this.app) this.watch.observe(this.app, { attributes: true, attributeFilter: ["class"] });
  }

  close() {
    this.watch.disconnect();
  }

  /**
   * @param {{scheme: string}} data what the server has drawn for
   * @param {(name: string, value: unknown) => void} emit
   */
  show(data, emit) {
    this.emit = emit;
    this.seen = data.scheme;
    this.requested = "";
    this.look();
  }

  look() {
    if (!this.app || !this.emit) return;
    const scheme = getComputedStyle(this.app).colorScheme;
    // What pops up lies outside the app, and has the document's colours.
    document.documentElement.style.colorScheme = scheme;
    if (scheme === this.seen || scheme === this.requested) return;
    this.requested = scheme;
    this.emit("scheme", scheme);
  }
}

export default component(() => new Page());
