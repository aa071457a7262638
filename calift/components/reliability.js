// @ts-check
// The reliability diagram: accuracy against confidence, what lies below each bin, and the choice of
// bins. All numbers and words come from the server; no sample does.
//
// Bins are chosen by dragging over the square, its strip or the rail of bins below them, by a click
// or a tap, or by keys in the rail: arrows move, Shift and arrows extend, Home and End jump, Enter
// chooses, Escape lets go. `range` tells the server [lower edge, upper edge], or null, and of which
// evaluation: the page may have gone on to another one meanwhile.

import { component, html, svg } from "./dom.js";

/**
 * @typedef {object} Bin
 * @property {number} lower
 * @property {number} upper
 * @property {number} count
 * @property {number} confidence mean
 * @property {number} accuracy
 * @property {number} low of the accuracy's 95 % interval
 * @property {number} high
 * @property {number} bandLow where a calibrated model's accuracy lies
 * @property {number} bandHigh
 * @property {number} clear 1 over-confident, −1 under-confident, 0 when noise explains the gap
 * @property {string[]} words what is said of it
 *
 * @typedef {object} Data
 * @property {string} of id of the evaluation
 * @property {string} title
 * @property {string[]} facts
 * @property {string} alt
 * @property {Bin[]} bins by confidence
 * @property {{name: string, value: number, floor: number, most: number, low: number, high: number}
 *   | null} error null where there is no floor
 * @property {{x: number[], y: number[]} | null} density of confidence, instead of counts
 * @property {{x: number[], y: Array<number | null>} | null} smooth
 * @property {string} colour of the run
 * @property {[number, number] | null} chosen
 * @property {Record<string, string>} says words of the chart itself
 */

const LEFT = 50;
const RIGHT = 12;
const TOP = 8;
const GAP = 10;
const WIDEST = 540;
/** Widest bar of a gap, as a share of the axis. */
const GAP_WIDTH = 0.08;
const PAUSE_MS = 350;

class Diagram {
  /** @param {any} root */
  constructor(root) {
    /** @type {Data | null} */
    this.data = null;
    /** @type {(name: string, value: unknown) => void} */
    this.said = () => {};
    /** @type {[number, number] | null} chosen bins, by index */
    this.range = null;
    /** @type {[number, number] | null} what is chosen and is no whole bins of this diagram */
    this.edges = null;
    this.anchor = 0;
    this.at = -1;
    this.focused = 0;
    this.dragging = false;
    this.timer = 0;
    this.side = 0;
    this.head = html("div", { class: "head" });
    this.plot = html("div", { class: "plot" });
    this.rail = html("div", { class: "rail", role: "listbox", "aria-multiselectable": "true" });
    this.tip = html("div", { class: "tip", "aria-hidden": "true", hidden: true });
    this.note = html("p", { class: "note" });
    this.legend = html("ul", { class: "legend" });
    this.box = html("div", { class: "diagram" }, [
      this.head, this.plot, this.rail, this.note, this.legend, this.tip,
    ]);
    root.append(this.box);
    this.observer = new ResizeObserver(() => this.resize());
    this.observer.observe(this.box);
    for (const [place, where] of [[this.plot, this.inPlot], [this.rail, this.inRail]]) {
      this.listen(place, where.bind(this));
    }
    this.rail.addEventListener("keydown", (/** @type {KeyboardEvent} */ e) => this.key(e));
    this.rail.addEventListener("focusin", () => this.point(this.focused));
    this.rail.addEventListener("focusout", () => this.point(-1));
  }

  close() {
    this.observer.disconnect();
    clearTimeout(this.timer);
    this.box.remove();
  }

  /**
   * @param {Data} data
   * @param {(name: string, value: unknown) => void} said
   */
  show(data, said) {
    const first = !this.data;
    const other = !first && this.data?.of !== data.of;
    this.data = data;
    this.said = said;
    if (other) {
      // What was pointed at, or was being chosen, were bins that are here no more.
      this.dragging = false;
      clearTimeout(this.timer);
      this.timer = 0;
      this.range = null;
      this.point(-1);
    }
    // A page that is drawn anew under somebody's finger does not take the choice out of it.
    if (!this.dragging && !this.timer) {
      this.range = this.indices(data.chosen);
      this.edges = this.range ? null : data.chosen;
    }
    this.focused = Math.min(this.focused, Math.max(0, data.bins.length - 1));
    if (first && this.range) this.focused = this.range[0];
    this.words();
    this.side = 0;
    this.resize();
  }

  /** @param {[number, number] | null} edges */
  indices(edges) {
    if (!edges || !this.data) return null;
    const near = 1e-9;
    const inside = this.data.bins.flatMap((b, k) =>
      b.lower >= edges[0] - near && b.upper <= edges[1] + near ? [k] : []);
    return /** @type {[number, number] | null} */ (
      inside.length ? [inside[0], inside[inside.length - 1]] : null);
  }

  // ---- Drawing --------------------------------------------------------------------------------

  words() {
    const { data } = this;
    if (!data) return;
    this.head.replaceChildren(
      html("h2", {}, [data.title]),
      ...data.facts.map((line) => html("p", {}, [line])));
    this.plot.setAttribute("role", "img");
    this.plot.setAttribute("aria-label", data.alt);
    this.rail.setAttribute("aria-label", data.says.rail);
    const root = /** @type {ShadowRoot | Document} */ (this.rail.getRootNode());
    const held = this.rail.contains(root.activeElement);
    this.rail.replaceChildren(...data.bins.map((bin, k) => html("div", {
      role: "option",
      class: `cell ${bin.clear > 0 ? "over" : bin.clear < 0 ? "under" : "noise"}`,
      "aria-label": bin.words.join(", "),
      tabindex: k === this.focused ? 0 : -1,
    }, [html("span", { "aria-hidden": "true" }, [bin.clear > 0 ? "▲" : bin.clear < 0 ? "▼" : "·"])])));
    if (held) this.rail.children[this.focused]?.focus();
    this.note.replaceChildren(data.says.help);
    const entry = (/** @type {string} */ kind, /** @type {string} */ words) =>
      html("li", {}, [html("i", { class: kind }), words]);
    this.legend.replaceChildren(
      entry("key-point", data.says.point), entry("key-band", data.says.band),
      entry("key-over", data.says.over), entry("key-under", data.says.under),
      ...(data.smooth ? [entry("key-smooth", data.says.smooth)] : []));
    this.box.style.setProperty("--run", data.colour);
  }

  resize() {
    const width = Math.min(this.box.clientWidth, WIDEST);
    const side = Math.floor(width - LEFT - RIGHT);
    if (side < 60 || side === this.side || !this.data) return;
    this.side = side;
    this.draw();
    this.mark();
  }

  draw() {
    const data = /** @type {Data} */ (this.data);
    const { side } = this;
    const gauge = data.error ? 34 : 0;
    const strip = Math.round(side * 0.2);
    const top = TOP + gauge;
    const below = top + side + GAP;
    const height = below + strip + 40;
    const x = (/** @type {number} */ v) => LEFT + v * side;
    const y = (/** @type {number} */ v) => top + (1 - v) * side;
    const picture = svg("svg", {
      width: LEFT + side + RIGHT, height, viewBox: `0 0 ${LEFT + side + RIGHT} ${height}`,
      "aria-hidden": "true",
    }, [patterns()]);
    if (data.error) picture.append(gaugeOf(data.error, LEFT, side));
    this.shade = svg("g", { class: "shade" });
    picture.append(frame(x, y, below, strip, data, side), this.shade);
    picture.append(...bars(data.bins, x, y), band(data.bins, x, y));
    picture.append(svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }));
    picture.append(...gaps(data.bins, x, y));
    if (data.smooth) picture.append(svg("path", { class: "smooth", d: path(data.smooth, x, y) }));
    this.points = data.bins.map((bin) => pointOf(bin, x, y));
    picture.append(...this.points);
    picture.append(stripOf(data, x, below, strip));
    this.plot.replaceChildren(picture);
    this.plot.style.width = `${LEFT + side + RIGHT}px`;
    this.rail.style.width = `${side}px`;
    this.place = { x, top, bottom: below + strip };
  }

  /** Show what is chosen and what is pointed at. */
  mark() {
    const data = this.data;
    if (!data || !this.shade || !this.place) return;
    const { x, top, bottom } = this.place;
    const block = (/** @type {number} */ from, /** @type {number} */ to, /** @type {string} */ kind) => {
      const width = Math.max(3, x(to) - x(from));
      return svg("rect", { class: kind, x: x(from), y: top, width, height: bottom - top });
    };
    const { bins } = data;
    const edges = this.range ? [bins[this.range[0]].lower, bins[this.range[1]].upper] : this.edges;
    this.shade.replaceChildren(
      ...(edges ? [block(edges[0], edges[1], "chosen")] : []),
      ...(this.at >= 0 ? [block(bins[this.at].lower, bins[this.at].upper, "pointed")] : []));
    const chosen = (/** @type {number} */ k) =>
      this.range !== null && k >= this.range[0] && k <= this.range[1];
    [...this.rail.children].forEach((cell, k) => {
      cell.setAttribute("aria-selected", String(chosen(k)));
      cell.classList.toggle("pointed", k === this.at);
      cell.setAttribute("tabindex", k === this.focused ? "0" : "-1");
    });
    (this.points ?? []).forEach((point, k) => {
      point.classList.toggle("pointed", k === this.at || chosen(k));
    });
  }

  /** @param {number} k the bin to tell about; −1 none */
  point(k) {
    this.at = k;
    this.mark();
    const bin = k >= 0 ? this.data?.bins[k] : undefined;
    this.tip.hidden = !bin;
    if (!bin || !this.place) return;
    this.tip.replaceChildren(...bin.words.map((line, n) => html(n ? "span" : "strong", {}, [line])));
    const middle = this.place.x((bin.lower + bin.upper) / 2);
    const room = this.box.clientWidth - this.tip.offsetWidth - 4;
    const beside = middle > this.side * 0.5 + LEFT
      ? Math.min(this.place.x(bin.lower), middle) - this.tip.offsetWidth - 12
      : Math.max(this.place.x(bin.upper), middle) + 12;
    this.tip.style.left = `${Math.max(0, Math.min(room, beside))}px`;
    this.tip.style.top = `${this.plot.offsetTop + this.place.top + 12}px`;
  }

  // ---- Choosing -------------------------------------------------------------------------------

  /** @param {number} across pixels from the plot's left; gives the nearest bin */
  inPlot(across) {
    const value = (across - LEFT) / this.side;
    let best = 0;
    let least = Infinity;
    (this.data?.bins ?? []).forEach((bin, k) => {
      const outside = Math.max(bin.lower - value, value - bin.upper, 0);
      // Narrow bins that touch the place are told apart by their middles.
      const apart = outside + 1e-6 * Math.abs((bin.lower + bin.upper) / 2 - value);
      if (apart < least) [best, least] = [k, apart];
    });
    return best;
  }

  /** @param {number} across pixels from the rail's left */
  inRail(across) {
    const n = this.data?.bins.length ?? 1;
    return Math.max(0, Math.min(n - 1, Math.floor((across / this.rail.clientWidth) * n)));
  }

  /**
   * @param {HTMLElement} place
   * @param {(across: number) => number} where
   */
  listen(place, where) {
    const bin = (/** @type {PointerEvent} */ e) =>
      where(e.clientX - place.getBoundingClientRect().left);
    place.addEventListener("pointerdown", (e) => {
      if (e.button !== 0 || !this.data?.bins.length) return;
      place.setPointerCapture(e.pointerId);
      this.before = this.range;
      this.dragging = true;
      this.anchor = bin(e);
      if (e.shiftKey && this.before) this.anchor = this.before[0];
      this.extend(bin(e));
      this.point(bin(e));
    });
    place.addEventListener("pointermove", (e) => {
      if (!this.data?.bins.length) return;
      if (this.dragging) this.extend(bin(e));
      if (this.dragging || e.pointerType !== "touch") this.point(bin(e));
    });
    place.addEventListener("pointerup", () => {
      if (!this.dragging) return;
      this.dragging = false;
      const [range, before] = [this.range, this.before];
      const again = range && before && range[0] === before[0] && range[1] === before[1];
      if (again && range[0] === range[1]) this.range = null;
      this.tell();
    });
    place.addEventListener("pointercancel", () => {
      // The browser scrolls instead: nothing was chosen.
      this.dragging = false;
      this.range = this.before ?? null;
      this.point(-1);
    });
    place.addEventListener("pointerleave", () => { if (!this.dragging) this.point(-1); });
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
    const n = this.data?.bins.length ?? 0;
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
        this.timer = window.setTimeout(() => this.tell(), PAUSE_MS);
      }
      this.focused = next;
      this.mark();
      /** @type {HTMLElement} */ (this.rail.children[next]).focus();
      this.point(next);
    } else if (e.key === "Enter" || e.key === " ") {
      const alone = this.range?.[0] === this.focused && this.range[1] === this.focused;
      this.range = alone ? null : [this.focused, this.focused];
      this.tell();
    } else if (e.key === "Escape") {
      this.range = null;
      this.tell();
    } else {
      return;
    }
    e.preventDefault();
  }

  tell() {
    clearTimeout(this.timer);
    this.timer = 0;
    this.edges = null;
    this.mark();
    const bins = this.data?.bins;
    this.said("range", { of: this.data?.of ?? "", edges: this.range && bins
      ? [bins[this.range[0]].lower, bins[this.range[1]].upper] : null });
  }
}

// ---- Parts of the picture ---------------------------------------------------------------------

/** @typedef {(value: number) => number} Scale */

function patterns() {
  const over = svg("pattern", { id: "over", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, [
    svg("path", { class: "over-ink", d: "M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" })]);
  const under = svg("pattern", { id: "under", width: 6, height: 6, patternUnits: "userSpaceOnUse" }, [
    svg("circle", { class: "under-ink", cx: 3, cy: 3, r: 1.3 })]);
  return svg("defs", {}, [over, under]);
}

/**
 * The error on a line of its own: up to where a calibrated model's would lie, and how sure.
 * @param {NonNullable<Data["error"]>} error
 * @param {number} left
 * @param {number} side
 */
function gaugeOf(error, left, side) {
  const end = 1.12 * Math.max(error.most, error.high, error.value, 1e-6);
  const x = (/** @type {number} */ v) => left + (Math.max(0, v) / end) * side;
  const row = TOP + 8;
  return svg("g", { class: "gauge" }, [
    svg("text", { x: left - 8, y: row + 4, "text-anchor": "end", class: "tick" }, [error.name]),
    svg("line", { class: "axis", x1: left, x2: left + side, y1: row, y2: row }),
    svg("rect", { class: "calibrated", x: left, y: row - 6, width: x(error.most) - left, height: 12 }),
    svg("line", { class: "floor", x1: x(error.floor), x2: x(error.floor), y1: row - 8, y2: row + 8 }),
    svg("line", { class: "interval", x1: x(error.low), x2: x(error.high), y1: row, y2: row }),
    svg("circle", { class: "value", cx: x(error.value), cy: row, r: 4.5 }),
  ]);
}

/**
 * @param {Scale} x
 * @param {Scale} y
 * @param {number} below
 * @param {number} strip
 * @param {Data} data
 * @param {number} side
 */
function frame(x, y, below, strip, data, side) {
  const parts = [];
  const ticks = side < 260 ? [0, 0.5, 1] : [0, 0.2, 0.4, 0.6, 0.8, 1];
  for (const tick of ticks) {
    const words = `${Math.round(100 * tick)}\u00a0%`;
    parts.push(
      svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(tick), y2: y(tick) }),
      svg("line", { class: "grid", x1: x(tick), x2: x(tick), y1: y(1), y2: y(0) }),
      svg("text", { class: "tick", x: x(0) - 8, y: y(tick) + 4, "text-anchor": "end" }, [words]),
      svg("text", { class: "tick", x: x(tick), y: below + strip + 16,
        "text-anchor": tick === 1 ? "end" : "middle" }, [words]));
  }
  parts.push(
    svg("line", { class: "axis", x1: x(0), x2: x(1), y1: below + strip, y2: below + strip }),
    svg("text", { class: "name", x: x(0.5), y: below + strip + 34, "text-anchor": "middle" },
      [data.says.confidence]),
    svg("text", { class: "name", transform: `translate(11 ${y(0.5)}) rotate(-90)`,
      "text-anchor": "middle" }, [data.says.accuracy]),
    svg("text", { class: "name", transform: `translate(11 ${below + strip / 2}) rotate(-90)`,
      "text-anchor": "middle" }, [data.density ? data.says.density : data.says.count]));
  return svg("g", {}, parts);
}

/**
 * @param {Bin[]} bins
 * @param {Scale} x
 * @param {Scale} y
 */
function bars(bins, x, y) {
  return bins.map((bin) => svg("rect", {
    class: "bar", x: x(bin.lower), width: Math.max(0.5, x(bin.upper) - x(bin.lower)),
    y: y(bin.accuracy), height: y(0) - y(bin.accuracy),
  }));
}

/**
 * @param {Bin[]} bins
 * @param {Scale} x
 * @param {Scale} y
 */
function band(bins, x, y) {
  const up = bins.map((b) => `${x(b.confidence)},${y(b.bandHigh)}`);
  const down = bins.map((b) => `${x(b.confidence)},${y(b.bandLow)}`).reverse();
  return svg("polygon", { class: "band", points: [...up, ...down].join(" ") });
}

/**
 * The gap of each bin, around its mean confidence and not wider than needed: a bin of equal mass may
 * reach over most of the axis with all its samples at one end.
 * @param {Bin[]} bins
 * @param {Scale} x
 * @param {Scale} y
 */
function gaps(bins, x, y) {
  return bins.map((bin) => {
    const low = Math.max(
      bin.lower, Math.min(bin.confidence - GAP_WIDTH / 2, bin.upper - GAP_WIDTH));
    const high = Math.min(bin.upper, low + GAP_WIDTH);
    const over = bin.confidence > bin.accuracy;
    const [top, bottom] = [Math.max(bin.confidence, bin.accuracy), Math.min(bin.confidence, bin.accuracy)];
    return svg("rect", {
      class: `gap ${over ? "over" : "under"}`, fill: `url(#${over ? "over" : "under"})`,
      x: x(low), width: Math.max(1, x(high) - x(low)), y: y(top), height: Math.max(0.5, y(bottom) - y(top)),
    });
  });
}

/**
 * @param {Bin} bin
 * @param {Scale} x
 * @param {Scale} y
 */
function pointOf(bin, x, y) {
  const across = x(bin.confidence);
  return svg("g", { class: "point" }, [
    svg("line", { x1: across, x2: across, y1: y(bin.low), y2: y(bin.high) }),
    svg("circle", { cx: across, cy: y(bin.accuracy), r: 4 }),
  ]);
}

/**
 * Samples below the square: their density where bins hold equally many, else each bin's count.
 * @param {Data} data
 * @param {Scale} x
 * @param {number} below
 * @param {number} strip
 */
function stripOf(data, x, below, strip) {
  const bottom = below + strip;
  if (data.density) {
    const { x: at, y: high } = data.density;
    const most = Math.max(...high, 1e-9);
    const line = at.map((v, k) => `${x(v)},${bottom - (high[k] / most) * strip}`);
    return svg("g", {}, [
      svg("polygon", { class: "counts",
        points: [`${x(at[0])},${bottom}`, ...line, `${x(at[at.length - 1])},${bottom}`].join(" ") }),
      ...data.bins.map((bin) => svg("line", {
        class: "edge", x1: x(bin.lower), x2: x(bin.lower), y1: bottom - 5, y2: bottom })),
    ]);
  }
  const most = Math.max(...data.bins.map((bin) => bin.count), 1);
  return svg("g", {}, data.bins.map((bin) => svg("rect", {
    class: "counts", x: x(bin.lower), width: Math.max(0.5, x(bin.upper) - x(bin.lower)),
    y: bottom - (bin.count / most) * strip, height: (bin.count / most) * strip,
  })));
}

/**
 * @param {{x: number[], y: Array<number | null>}} curve
 * @param {Scale} x
 * @param {Scale} y
 */
function path(curve, x, y) {
  let open = false;
  return curve.x.map((v, k) => {
    const value = curve.y[k];
    if (value === null) { open = false; return ""; }
    const step = `${open ? "L" : "M"}${x(v).toFixed(1)},${y(value).toFixed(1)}`;
    open = true;
    return step;
  }).join("");
}

export default component((root) => new Diagram(root));
