// @ts-check
// A chart of Plotly's. Its script, most often a part of Plotly, is loaded once a chart is near what
// can be seen, and so is each chart drawn. `mark` tells the server what the mark that somebody selected stands for.

import { component, html } from "./dom.js";

/**
 * @typedef {object} Data
 * @property {string} figure Plotly's JSON: `data` and `layout`
 * @property {Record<string, unknown>} config Plotly's
 * @property {string} script its address
 * @property {string} alt
 * @property {boolean} selects whether marks can be selected
 * @property {string} of what the figure is, sent back with a mark
 * @property {string} away said where the script cannot be loaded
 */

/** How far outside of what can be seen a chart is drawn: hardly, for many are never looked at. */
const NEAR = "40px";
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

class Chart {
  /** @param {any} root */
  constructor(root) {
    /** @type {Data | null} */
    this.data = null;
    /** @type {(name: string, value: unknown) => void} */
    this.said = () => {};
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
   * @param {(name: string, value: unknown) => void} said
   */
  show(data, said) {
    this.data = data;
    this.said = said;
    this.box.setAttribute("aria-label", data.alt);
    if (data.figure === this.drawn) return;
    this.figure = JSON.parse(data.figure);
    this.box.style.height = `${this.figure.layout.height}px`;
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
      const layout = {
        ...figure.layout, autosize: true,
        ...(data.selects ? { clickmode: "event+select" } : {}),
      };
      this.plotly = Plotly;
      await Plotly.react(this.plot, figure.data, layout, data.config);
      this.listen();
      this.why.replaceChildren();
      this.box.dataset.state = "drawn";
    } catch {
      if (this.closed) return;
      this.drawn = "";
      this.why.replaceChildren(data.away);
      this.box.dataset.state = "fault";
    }
  }

  listen() {
    if (this.width) return;
    this.width = this.box.clientWidth;
    this.sizes.observe(this.box);
    this.plot.on("plotly_click", (/** @type {any} */ event) => {
      const { data } = this;
      const point = event.points.find((/** @type {any} */ one) => one.customdata?.length);
      if (data?.selects && point) this.said("mark", { of: data.of, mark: [...point.customdata] });
    });
  }

  resize() {
    const width = this.box.clientWidth;
    if (!width || width === this.width) return;
    this.width = width;
    this.plotly.Plots.resize(this.plot);
  }
}

export default component((root) => new Chart(root));
