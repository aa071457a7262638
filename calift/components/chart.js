// @ts-check
// A chart of Plotly's. Its script, most often a part of Plotly, is loaded once a chart is near what
// can be seen, and so is each chart drawn. `mark` tells the server what the mark that somebody selected
// stands for, `range` the edges of the bins that somebody chose.

import { Bins, RAIL_PX } from "./bins.js";
import { component, html } from "./dom.js";

/**
 * @typedef {object} Data
 * @property {string} figure Plotly's JSON: `data` and `layout`
 * @property {Record<string, unknown>} config Plotly's
 * @property {string} script its address
 * @property {string} alt
 * @property {boolean} selects whether marks can be selected
 * @property {boolean} [areas] whether a lasso around marks means something
 * @property {string} of what the figure is, sent back with a mark
 * @property {import("./bins.js").Data | null} [bins] that can be chosen
 * @property {string} away said where the script cannot be loaded
 */

/** How far outside of what can be seen a chart is drawn: hardly, for many are never looked at. */
const NEAR = "40px";
/** Corners of a lasso that the server is told. */
const CORNERS = 60;
const RETRIES_MS = [500, 2000, 8000];

/** @type {Map<string, Promise<any>>} */
const loading = new Map();

/**
 * Plotly, loaded once a page. A module that failed to load stays so under its address.
 * @param {string} address
 */
function plotly(address) {
  if (!loading.has(address)) {
    loading.set(address, loaded(address).catch((error) => {
      loading.delete(address);
      throw error;
    }));
  }
  return /** @type {Promise<any>} */ (loading.get(address));
}

/** @param {string} address */
async function loaded(address) {
  for (let turn = 0; ; turn += 1) {
    try {
      await import(turn ? `${address}?again=${turn}` : address);
      return /** @type {any} */ (globalThis).Plotly;
    } catch (error) {
      if (turn === RETRIES_MS.length) throw error;
      await new Promise((done) => { setTimeout(done, RETRIES_MS[turn]); });
    }
  }
}

/** Lines of a title that are kept, what one of them takes, and where several begin. */
const LINES = 6;
const LINE_PX = 20;
const PAD_PX = 18;

/** @type {CanvasRenderingContext2D | null} */
let pen = null;

/**
 * How wide words are in a chart's title.
 * @param {string} words escaped
 * @param {string} tag that they stand in
 * @param {any} layout
 */
function wide(words, tag, layout) {
  pen ??= document.createElement("canvas").getContext("2d");
  if (!pen) return 0;
  const size = /font-size:(\d+)px/.exec(tag)?.[1] ?? layout.title.font?.size ?? 15;
  pen.font = `${tag.startsWith("<b") ? "bold " : ""}${size}px ${layout.font?.family ?? "sans-serif"}`;
  return pen.measureText(words.replace(/&[^;\s]+;/g, "w")).width;
}

/**
 * A line of a title as the lines that fit; its tag goes around each.
 * @param {string} line
 * @param {number} width
 * @param {any} layout
 */
function wrapped(line, width, layout) {
  const [, open, inner, close] = /^(<[^>]*>)(.*)(<\/[^>]*>)$/s.exec(line) ?? ["", "", line, ""];
  const fits = (/** @type {string} */ words) => wide(words, open, layout) <= width;
  const lines = [""];
  for (const word of inner.split(" ")) {
    const last = lines[lines.length - 1];
    if (!last || fits(`${last} ${word}`)) lines[lines.length - 1] = last ? `${last} ${word}` : word;
    else lines.push(word);
    // A word longer than a line is broken, between entities.
    while (!fits(lines[lines.length - 1]) && lines.length <= LINES) {
      const parts = (lines.pop() ?? "").match(/&[^;\s]+;|./gsu) ?? [];
      let n = parts.length - 1;
      while (n > 1 && !fits(parts.slice(0, n).join(""))) n = n > 64 ? n >> 1 : n - 1;
      if (n < 1) {
        lines.push(parts.join(""));
        break;
      }
      lines.push(parts.slice(0, n).join(""), parts.slice(n).join(""));
    }
  }
  return lines.map((words) => open + words + close);
}

/**
 * A layout whose title fits a width: Plotly cuts what is longer.
 * @param {any} layout
 * @param {number} width
 */
function titled(layout, width) {
  const text = layout.title?.text;
  if (!text || !width) return layout;
  const lines = text.split("<br>");
  const all = lines.flatMap((/** @type {string} */ line) => wrapped(line, width - 12, layout));
  const more = Math.min(all.length, Math.max(LINES, lines.length)) - lines.length;
  if (more <= 0) return layout;
  const kept = all.slice(0, lines.length + more);
  if (kept.length < all.length) kept.push(`${kept.pop()} …`);
  return {
    ...layout,
    title: { ...layout.title, text: kept.join("<br>"), pad: { ...layout.title.pad, t: PAD_PX } },
    height: layout.height + LINE_PX * more,
    margin: { ...layout.margin, t: (layout.margin?.t ?? 0) + LINE_PX * more },
  };
}

/**
 * A layout without a band of nothing above a square that a narrow screen makes smaller.
 * @param {any} layout
 * @param {number} width
 */
function squared(layout, width) {
  const { height, legend, margin, xaxis, xaxis2, yaxis } = layout;
  const several = xaxis2 && xaxis2.visible !== false;
  if (yaxis?.scaleanchor !== "x" || several || !width) return layout;
  const share = (/** @type {any} */ axis) => (axis.domain ? axis.domain[1] - axis.domain[0] : 1);
  const plot = height - margin.t - margin.b;
  const fits = Math.round(((width - margin.l - margin.r) * share(xaxis)) / share(yaxis));
  if (fits < 100 || fits >= plot) return layout;
  // A legend below is placed in heights of the plot.
  const below = legend?.y < 0 ? { ...legend, y: (legend.y * plot) / fits } : legend;
  return { ...layout, height: height - plot + fits, legend: below };
}

/** Up to this width a legend has one entry a line, which takes so much more. */
const NARROW_PX = 420;
const LEGEND_PX = 63;

/**
 * A layout with room for the rail of bins between the x axis's title and the legend.
 * @param {any} layout
 * @param {number} width
 */
function railed(layout, width) {
  const { height, legend, margin } = layout;
  const more = RAIL_PX + (width < NARROW_PX ? LEGEND_PX : 0);
  const y = legend.y - RAIL_PX / (height - margin.t - margin.b);
  return {
    ...layout,
    height: height + more,
    margin: { ...margin, b: margin.b + more },
    legend: { ...legend, y },
  };
}

class Chart {
  /** @param {any} root */
  constructor(root) {
    /** @type {Data | null} */
    this.data = null;
    /** @type {(name: string, value: unknown) => void} */
    this.emit = () => {};
    this.near = false;
    this.closed = false;
    /** what is drawn, or is being drawn */
    this.drawn = "";
    this.width = 0;
    this.plot = html("div", { class: "plot" });
    this.why = html("p", { class: "why", role: "status" });
    this.box = html("div", { class: "calift-chart", role: "figure", "data-state": "waits" }, [
      this.plot, this.why,
    ]);
    root.append(this.box);
    this.watch = new IntersectionObserver(
      (seen) => { if (seen.some((one) => one.isIntersecting)) this.come(); },
      /** @type {any} */ ({ rootMargin: NEAR, scrollMargin: NEAR }));
    this.watch.observe(this.box);
    this.sizes = new ResizeObserver(() => this.resize());
    this.print = () => this.come();
    addEventListener("beforeprint", this.print);
  }

  close() {
    this.closed = true;
    this.watch.disconnect();
    this.sizes.disconnect();
    removeEventListener("beforeprint", this.print);
    this.plotly?.purge(this.plot);
    this.box.remove();
  }

  /**
   * @param {Data} data
   * @param {(name: string, value: unknown) => void} emit
   */
  show(data, emit) {
    this.data = data;
    this.emit = emit;
    this.box.setAttribute("aria-label", data.alt);
    if (data.bins) {
      this.bins ??= new Bins(this.box, this.plot,
        (edges) => this.emit("range", { of: this.data?.of, edges }), (k) => this.hover(k));
      this.bins.show(data.bins, data.of);
    }
    if (data.figure === this.drawn) return;
    this.figure = JSON.parse(data.figure);
    this.box.style.height = `${this.fitted().height}px`;
    if (this.near) this.draw();
  }

  come() {
    if (this.near) return;
    this.near = true;
    this.watch.disconnect();
    this.draw();
  }

  async draw() {
    const { data, figure } = this;
    if (!data || !figure || this.drawn === data.figure) return;
    this.drawn = data.figure;
    this.box.dataset.state = "loading";
    try {
      const Plotly = await plotly(data.script);
      // Meanwhile it may have gone, or have become another.
      if (this.closed || this.drawn !== data.figure) return;
      this.plotly = Plotly;
      await Plotly.react(this.plot, figure.data, this.layout(), data.config);
      this.listen();
      this.bins?.align();
      this.why.replaceChildren();
      this.box.dataset.state = "drawn";
    } catch {
      if (this.closed) return;
      this.drawn = "";
      this.why.replaceChildren(data.away);
      this.box.dataset.state = "fault";
    }
  }

  /** The layout that fits the width. */
  fitted() {
    const { layout } = this.figure;
    const width = this.box.clientWidth;
    return squared(titled(this.bins ? railed(layout, width) : layout, width), width);
  }

  layout() {
    const { data } = this;
    const fits = this.fitted();
    this.box.style.height = `${fits.height}px`;
    return { ...fits, autosize: true, ...(data?.selects ? { clickmode: "event+select" } : {}) };
  }

  listen() {
    if (this.width) return;
    this.width = this.box.clientWidth;
    this.sizes.observe(this.box);
    if (this.data?.areas) this.plot.on("plotly_selected", (/** @type {any} */ e) => this.area(e));
    this.plot.on("plotly_click", (/** @type {any} */ event) => {
      const { data } = this;
      const point = event.points.find((/** @type {any} */ one) => one.customdata?.length);
      if (data?.selects && point) this.emit("mark", { of: data.of, mark: [...point.customdata] });
    });
  }

  /** @param {any} event a lasso or a box; none of either where a mark was clicked */
  area(event) {
    const { data } = this;
    const { x, y } = event?.lassoPoints ?? {};
    const box = event?.range;
    const corners = x ? x.map((/** @type {number} */ v, /** @type {number} */ k) => [v, y[k]])
      : box ? [[box.x[0], box.y[0]], [box.x[1], box.y[0]], [box.x[1], box.y[1]], [box.x[0], box.y[1]]]
        : [];
    const step = Math.ceil(corners.length / CORNERS);
    const kept = corners.filter((/** @type {any} */ _, /** @type {number} */ k) => k % step === 0);
    if (data && kept.length > 2) this.emit("area", { of: data.of, corners: kept });
  }

  /** @param {number} k the bin that Plotly tells about; −1 none */
  hover(k) {
    if (!this.plotly) return;
    const curveNumber = this.figure.data.findIndex(
      (/** @type {any} */ trace) => trace.legendgroup === "points");
    if (k < 0) this.plotly.Fx.unhover(this.plot);
    else this.plotly.Fx.hover(this.plot, [{ curveNumber, pointNumber: k }]);
  }

  async resize() {
    const width = this.box.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    const { height, title } = this.plot.layout;
    const layout = this.layout();
    const same = title?.text === layout.title?.text && height === layout.height;
    if (same) await this.plotly.Plots.resize(this.plot);
    else await this.plotly.react(this.plot, this.figure.data, layout, this.data?.config);
    this.bins?.align();
  }
}

export default component((root) => new Chart(root));
