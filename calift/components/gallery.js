// @ts-check
// Images of samples, with what one or two models say of each. Words and addresses come from the
// server; `open` tells it the place of the image that somebody opened, `alike` of one that others
// are to be like.

import { component, html } from "./dom.js";

/**
 * @typedef {object} Answer
 * @property {string} by whose it is; empty where only one model answers
 * @property {string} words
 * @property {boolean} correct
 *
 * @typedef {object} Item
 * @property {string} href of the sample's page
 * @property {string} src of its thumbnail
 * @property {string} alt
 * @property {string} label
 * @property {Answer[]} answers
 * @property {string[]} marks
 * @property {Array<{words: string, share: number, own: boolean}>} top most probable classes
 *
 * @typedef {object} Data
 * @property {Item[]} items
 * @property {string} missing said where an image cannot be had
 * @property {string} [alike] words of the button that looks for images like this; none: no button
 */

/** Answers of a service that has too much to do, and when it is asked again. */
const PASSING = [429, 502, 503, 504];
const AGAIN_MS = [1000, 2000, 4000, 8000, 15000];

class Gallery {
  /** @param {any} root */
  constructor(root) {
    this.list = html("ul", { class: "gallery" });
    this.why = html("p", { class: "why", role: "status" });
    root.append(this.list, this.why);
    this.shown = "";
  }

  close() {
    this.list.remove();
    this.why.remove();
  }

  /**
   * @param {Data} data
   * @param {(name: string, value: unknown) => void} said
   */
  show(data, said) {
    this.said = said;
    const now = JSON.stringify(data);
    if (now === this.shown) return; // images that are there stay there
    this.shown = now;
    this.asked = false;
    this.why.replaceChildren();
    this.list.replaceChildren(...data.items.map((item, k) => this.card(item, k, data)));
  }

  /**
   * @param {Item} item
   * @param {number} k
   * @param {Data} data
   */
  card(item, k, data) {
    const image = html("img", {
      src: item.src, alt: item.alt, loading: "lazy", decoding: "async",
    });
    const link = html("a", { href: item.href, class: "picture" }, [image]);
    image.addEventListener("error", () => this.missed(image, item.src, data));
    link.addEventListener("click", (/** @type {MouseEvent} */ e) => {
      if (e.ctrlKey || e.metaKey || e.shiftKey || e.altKey) return; // a tab of its own
      e.preventDefault();
      this.said?.("open", k);
    });
    const answer = (/** @type {Answer} */ a) => html("p", { class: a.correct ? "right" : "wrong" }, [
      html("span", { class: "sign", role: "img", "aria-label": a.correct ? "right" : "wrong" },
        [a.correct ? "✓" : "✗"]),
      a.by ? html("span", { class: "by" }, [`${a.by}: `]) : "", a.words]);
    return html("li", {}, [
      link,
      html("p", { class: "label" }, [item.label]),
      ...item.answers.map(answer),
      ...item.marks.map((words) => html("p", { class: "mark" }, [words])),
      ...(data.alike ? [this.button(data.alike, item, () => this.said?.("alike", k))] : []),
      ...(item.top.length ? [html("ol", {}, item.top.map((one) => {
        const row = html("li", { class: one.own ? "own" : null }, [
          html("span", {}, [one.words])]);
        row.style.setProperty("--share", `${Math.round(1000 * one.share) / 10}%`);
        return row;
      }))] : []),
    ]);
  }

  /**
   * @param {string} words
   * @param {Item} item
   * @param {() => void} done
   */
  button(words, item, done) {
    const made = html("button", { type: "button", "aria-label": `${words}: ${item.alt}` }, [words]);
    made.addEventListener("click", done);
    return made;
  }

  /**
   * An image did not come. Where the service is busy it is asked for again, a few times and later
   * each time; else its place says that there is none.
   * @param {HTMLImageElement} image
   * @param {string} src
   * @param {Data} data
   */
  async missed(image, src, data) {
    const turn = Number(image.dataset.turn ?? 0);
    const answer = await fetch(src).catch(() => null);
    if (!image.isConnected) return;
    const passes = answer === null || PASSING.includes(answer.status);
    if ((passes || answer.ok) && turn < AGAIN_MS.length) {
      image.dataset.turn = String(turn + 1);
      if (passes) await new Promise((done) => { setTimeout(done, AGAIN_MS[turn]); });
      image.src = src;
      return;
    }
    image.replaceWith(html("span", { class: "missing" }, [data.missing]));
    if (this.asked) return;
    this.asked = true;
    // The page itself says when the service is away.
    if (answer && !answer.ok) this.why.replaceChildren((await answer.text()).slice(0, 300));
  }
}

export default component((root) => new Gallery(root));
