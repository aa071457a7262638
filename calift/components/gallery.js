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
 * @property {string[]} [tags]
 * @property {string[]} marks
 * @property {Array<{words: string, share: number, own: boolean}>} top most probable classes
 *
 * @typedef {object} Data
 * @property {Item[]} items
 * @property {string} missing said where an image cannot be had
 * @property {{known: string[], all: number} | null} [tags] that images can be given, and how many
 *   images were chosen; null: no tags
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
    this.bar = html("div", { class: "bar", role: "group", "aria-label": "Tags" });
    root.append(this.list, this.bar, this.why);
    this.shown = "";
  }

  close() {
    this.list.remove();
    this.bar.remove();
    this.why.remove();
  }

  /**
   * @param {Data} data
   * @param {(name: string, value: unknown) => void} emit
   */
  show(data, emit) {
    this.emit = emit;
    const now = JSON.stringify(data);
    if (now === this.shown) return; // images that are there stay there
    this.shown = now;
    this.requested = false;
    this.why.replaceChildren();
    this.list.replaceChildren(...data.items.map((item, k) => this.card(item, k, data)));
    this.bar.replaceChildren(...(data.tags ? this.tagging(data.tags) : []));
  }

  /**
   * What puts tags on the images that are ticked, or on all that were chosen.
   * @param {{known: string[], all: number}} tags
   */
  tagging(tags) {
    const list = html("datalist", { id: "known" }, tags.known.map((value) => html("option", { value })));
    const field = html("input", {
      type: "text", maxlength: 40, list: "known", placeholder: "tag", "aria-label": "Tag",
    });
    const all = html("input", { type: "checkbox" });
    const send = (/** @type {boolean} */ on) => () => {
      const boxes = [...this.list.querySelectorAll(".tick")];
      const at = boxes.flatMap((box, k) => (box.checked ? [k] : []));
      const wrong = !field.value.trim() ? "Type a tag first."
        : /["']/.test(field.value) ? "A tag has no quotes."
          : !at.length && !all.checked ? "Tick images first, or all that are chosen." : "";
      this.why.replaceChildren(wrong);
      if (!wrong) this.emit?.("tag", { at, all: all.checked, tag: field.value, on });
    };
    const button = (/** @type {string} */ words, /** @type {boolean} */ on) => {
      const made = html("button", { type: "button" }, [words]);
      made.addEventListener("click", send(on));
      return made;
    };
    return [
      html("span", {}, ["Tag the ticked images:"]), list, field,
      button("Put on", true), button("Take off", false),
      html("label", {}, [all, `all ${tags.all.toLocaleString("en")} that are chosen`]),
    ];
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
      this.emit?.("open", k);
    });
    const answer = (/** @type {Answer} */ a) => html("p", { class: a.correct ? "right" : "wrong" }, [
      html("span", { class: "sign", role: "img", "aria-label": a.correct ? "right" : "wrong" },
        [a.correct ? "✓" : "✗"]),
      a.by ? html("span", { class: "by" }, [`${a.by}: `]) : "", a.words]);
    return html("li", {}, [
      link,
      html("p", { class: "label" }, [
        data.tags ? html("input", { type: "checkbox", class: "tick", "aria-label": `choose ${item.alt}` })
          : "", item.label]),
      ...(item.tags ?? []).map((words) => html("p", { class: "mark tag" }, [words])),
      ...item.answers.map(answer),
      ...item.marks.map((words) => html("p", { class: "mark" }, [words])),
      ...(data.alike ? [this.button(data.alike, item, () => this.emit?.("alike", k))] : []),
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
    if (this.requested) return;
    this.requested = true;
    // The page itself says when the service is away.
    if (answer && !answer.ok) this.why.replaceChildren((await answer.text()).slice(0, 300));
  }
}

export default component((root) => new Gallery(root));
