// @ts-check
// The choice of bins in a reliability diagram of Plotly's.
//
// Bins are chosen by dragging over the plot or the rail of bins below it, by a click or a tap, or by
// keys in the rail: arrows move, Shift and arrows extend, Home and End jump, Enter chooses, Escape
// lets go. `tell` is given [lower edge, upper edge], or null.

import { html } from "./dom.js";

/**
 * @typedef {object} Bin
 * @property {number} lower
 * @property {number} upper
 * @property {number} clear 1 over-confident, −1 under-confident, 0 when noise explains the gap
 * @property {string} words what is said of it
 *
 * @typedef {object} Data
 * @property {Bin[]} bins by confidence
 * @property {[number, number] | null} chosen edges
 * @property {string} label of the rail
 */

/** What the rail takes below the x axis, and how far below it: there the axis has its title. */
export const RAIL_PX = 48;
const TITLE_PX = 44;
const PAUSE_MS = 350;

export class Bins {
  /**
   * @param {HTMLElement} box holds the plot
   * @param {any} plot
   * @param {(edges: [number, number] | null) => void} tell
   * @param {(k: number) => void} hover tells about a bin; −1 none
   */
  constructor(box, plot, tell, hover) {
    this.plot = plot;
    this.tell = tell;
    this.hover = hover;
    /** @type {{x: (value: number) => number, top: number, bottom: number} | undefined} */
    this.place = undefined;
    /** @type {Bin[]} */
    this.bins = [];
    /** @type {[number, number] | null} chosen bins, by index */
    this.range = null;
    /** @type {[number, number] | null} what is chosen and is no whole bins of this diagram */
    this.edges = null;
    this.of = "";
    this.anchor = 0;
    this.at = -1;
    this.focused = 0;
    this.dragging = false;
    this.timer = 0;
    this.shade = html("div", { class: "shade" });
    this.rail = html("div", { class: "rail", role: "listbox", "aria-multiselectable": "true" });
    box.append(this.shade, this.rail);
    box.classList.add("has-bins");
    this.listen(plot, (x) => this.inPlot(x), (x, y) => this.place !== undefined
      && y >= this.place.top && y <= this.place.bottom && x >= this.place.x(0) - 8);
    this.listen(this.rail, (x) => this.inRail(x), () => true);
    this.rail.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.key(e));
    this.rail.addEventListener("focusin", () => this.point(this.focused, true));
    this.rail.addEventListener("focusout", () => this.point(-1, true));
  }

  /**
   * @param {Data} data
   * @param {string} of the figure
   */
  show(data, of) {
    if (this.of !== of) {
      // What was pointed at, or was being chosen, were bins that may be here no more.
      this.dragging = false;
      clearTimeout(this.timer);
      this.timer = 0;
      this.at = -1;
    }
    this.bins = data.bins;
    // A page that is drawn anew under somebody's finger does not take the choice out of it.
    if (!this.dragging && !this.timer) {
      this.range = this.indices(data.chosen);
      this.edges = this.range ? null : data.chosen;
    }
    if (!this.of && this.range) this.focused = this.range[0];
    this.of = of;
    this.focused = Math.min(this.focused, Math.max(0, data.bins.length - 1));
    this.rail.setAttribute("aria-label", data.label);
    const held = this.rail.contains(document.activeElement);
    this.rail.replaceChildren(...data.bins.map((bin) => html("div", {
      role: "option",
      class: `cell ${bin.clear > 0 ? "over" : bin.clear < 0 ? "under" : "noise"}`,
      "aria-label": bin.words,
    }, [html("span", { "aria-hidden": "true" }, [bin.clear > 0 ? "▲" : bin.clear < 0 ? "▼" : "·"])])));
    this.mark();
    if (held) this.rail.children[this.focused]?.focus();
  }

  /** Lay rail and shade on the axes of what Plotly has drawn. */
  align() {
    const { xaxis, yaxis, yaxis2 } = this.plot._fullLayout;
    const x = (/** @type {number} */ v) => xaxis._offset + xaxis.d2p(v);
    this.place = { x, top: yaxis._offset, bottom: yaxis2._offset + yaxis2._length };
    this.rail.style.left = `${x(0)}px`;
    this.rail.style.width = `${x(1) - x(0)}px`;
    this.rail.style.top = `${this.place.bottom + TITLE_PX}px`;
    this.mark();
  }

  /** @param {[number, number] | null} edges */
  indices(edges) {
    if (!edges) return null;
    const near = 1e-9;
    const inside = this.bins.flatMap((b, k) =>
      b.lower >= edges[0] - near && b.upper <= edges[1] + near ? [k] : []);
    return /** @type {[number, number] | null} */ (
      inside.length ? [inside[0], inside[inside.length - 1]] : null);
  }

  /** The outer edges of what is chosen. */
  span() {
    return this.range
      ? /** @type {[number, number]} */ (
        [this.bins[this.range[0]].lower, this.bins[this.range[1]].upper])
      : this.edges;
  }

  /** Show what is chosen and what is pointed at. */
  mark() {
    [...this.rail.children].forEach((cell, k) => {
      const chosen = this.range !== null && k >= this.range[0] && k <= this.range[1];
      cell.setAttribute("aria-selected", String(chosen));
      cell.classList.toggle("pointed", k === this.at);
      cell.setAttribute("tabindex", k === this.focused ? "0" : "-1");
    });
    if (!this.place) return;
    const { x, top, bottom } = this.place;
    const block = (/** @type {number} */ from, /** @type {number} */ to, /** @type {string} */ kind) => {
      const made = html("div", { class: kind });
      made.style.left = `${x(from)}px`;
      made.style.width = `${Math.max(3, x(to) - x(from))}px`;
      made.style.top = `${top}px`;
      made.style.height = `${bottom - top}px`;
      return made;
    };
    const edges = this.span();
    const bin = this.bins[this.at];
    this.shade.replaceChildren(
      ...(edges ? [block(edges[0], edges[1], "chosen")] : []),
      ...(bin ? [block(bin.lower, bin.upper, "pointed")] : []));
  }

  /**
   * @param {number} k the bin that is pointed at; −1 none
   * @param {boolean} tells say what is known of it; over the plot Plotly does
   */
  point(k, tells) {
    this.at = k;
    this.mark();
    if (tells) this.hover(k);
  }

  /** @param {number} across pixels from the plot's left; gives the nearest bin */
  inPlot(across) {
    const { x } = /** @type {any} */ (this.place);
    const value = (across - x(0)) / (x(1) - x(0));
    let best = 0;
    let least = Infinity;
    this.bins.forEach((bin, k) => {
      const outside = Math.max(bin.lower - value, value - bin.upper, 0);
      // Narrow bins that touch the place are told apart by their middles.
      const apart = outside + 1e-6 * Math.abs((bin.lower + bin.upper) / 2 - value);
      if (apart < least) [best, least] = [k, apart];
    });
    return best;
  }

  /** @param {number} across pixels from the rail's left */
  inRail(across) {
    const n = this.bins.length || 1;
    return Math.max(0, Math.min(n - 1, Math.floor((across / this.rail.clientWidth) * n)));
  }

  /**
   * @param {HTMLElement} place
   * @param {(across: number) => number} where
   * @param {(across: number, down: number) => boolean} within
   */
  listen(place, where, within) {
    const at = (/** @type {PointerEvent} */ e) => {
      const box = place.getBoundingClientRect();
      return /** @type {[number, number]} */ ([e.clientX - box.left, e.clientY - box.top]);
    };
    const rail = place === this.rail;
    place.addEventListener("pointerdown", (e) => {
      const [x, y] = at(e);
      if (e.button !== 0 || !this.bins.length || !within(x, y)) return;
      place.setPointerCapture(e.pointerId);
      this.before = this.range;
      this.dragging = true;
      this.anchor = where(x);
      if (e.shiftKey && this.before) this.anchor = this.before[0];
      this.extend(where(x));
      this.point(where(x), rail);
    });
    place.addEventListener("pointermove", (e) => {
      const [x, y] = at(e);
      if (!this.bins.length || (!this.dragging && !within(x, y))) return;
      if (this.dragging) this.extend(where(x));
      if (this.dragging || e.pointerType !== "touch") this.point(where(x), rail);
    });
    place.addEventListener("pointerup", () => {
      if (!this.dragging) return;
      this.dragging = false;
      const [range, before] = [this.range, this.before];
      const again = range && before && range[0] === before[0] && range[1] === before[1];
      if (again && range[0] === range[1]) this.range = null;
      this.choose();
    });
    place.addEventListener("pointercancel", () => {
      // The browser scrolls instead: nothing was chosen.
      this.dragging = false;
      this.range = this.before ?? null;
      this.point(-1, rail);
    });
    place.addEventListener("pointerleave", () => { if (!this.dragging) this.point(-1, rail); });
  }

  /** @param {number} k choose from the anchor to this bin */
  extend(k) {
    this.range = [Math.min(this.anchor, k), Math.max(this.anchor, k)];
    this.edges = null;
    this.focused = k;
    this.mark();
  }

  /** @param {KeyboardEvent} e */
  key(e) {
    const n = this.bins.length;
    const steps = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -n, End: n };
    if (!n || e.ctrlKey || e.metaKey || e.altKey) return;
    if (e.key in steps) {
      const step = steps[/** @type {keyof typeof steps} */ (e.key)];
      const next = Math.max(0, Math.min(n - 1, this.focused + step));
      if (e.shiftKey) {
        if (!this.range) this.anchor = this.focused;
        else this.anchor = this.focused === this.range[0] ? this.range[1] : this.range[0];
        this.extend(next);
        clearTimeout(this.timer);
        this.timer = window.setTimeout(() => this.choose(), PAUSE_MS);
      }
      this.focused = next;
      this.rail.children[next].focus();
      this.point(next, true);
    } else if (e.key === "Enter" || e.key === " ") {
      const alone = this.range?.[0] === this.focused && this.range[1] === this.focused;
      this.range = alone ? null : [this.focused, this.focused];
      this.choose();
    } else if (e.key === "Escape") {
      this.range = null;
      this.choose();
    } else {
      return;
    }
    e.preventDefault();
  }

  choose() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.edges = null;
    this.mark();
    this.tell(this.span());
  }
}
