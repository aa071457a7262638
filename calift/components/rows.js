// @ts-check
// Rows that are opened and chosen. A row's name is a link, so that it opens by the keyboard and in a
// tab of its own; a click anywhere else in the row opens it too. `open` tells the server which, and
// `choose` the places of all the rows that are ticked; `sort` which order a click into a heading asks
// for. Where the columns do not fit side by side, each
// row is a card with its values by their names.

import { component, html } from "./dom.js";

/**
 * @typedef {object} Column
 * @property {string} name
 * @property {string} label
 * @property {"open" | "mark" | "share" | "number" | "text"} kind
 * @property {string} sort the order that a first click into its heading asks for, `-` for the largest
 *   first; empty where it has none
 *
 * @typedef {{symbol: string, word: string, colour: string}} Mark
 * @typedef {{words: string, note: string}} Noted
 *
 * @typedef {object} Row
 * @property {string} href of what it opens; empty where there is nothing
 * @property {Record<string, string | number | Mark | Noted | null>} cells by column
 *
 * @typedef {object} Data
 * @property {string} of what the rows are, sent back with what is said of them
 * @property {string} caption
 * @property {Column[]} columns
 * @property {Row[]} rows
 * @property {boolean} several whether rows can be chosen
 * @property {number[]} chosen
 * @property {string} dash for a cell without a value
 * @property {string} sorted the order that the rows have, empty: their own
 * @property {{name: string, value: string} | null} kept what the browser keeps in a cookie
 */

class Rows {
  /** @param {any} root */
  constructor(root) {
    this.root = root;
    this.box = html("div", { class: "rows", tabindex: 0, role: "region" });
    root.append(this.box);
    this.watch = new ResizeObserver(() => this.fit());
    this.watch.observe(this.box);
    this.shown = "";
    this.of = "";
    /** @type {Set<number>} */
    this.chosen = new Set();
    /** @type {(name: string, value: unknown) => void} */
    this.emit = () => {};
  }

  close() {
    this.watch.disconnect();
    this.box.remove();
  }

  /**
   * @param {Data} data
   * @param {(name: string, value: unknown) => void} emit
   */
  show(data, emit) {
    this.emit = emit;
    const now = JSON.stringify({ ...data, chosen: [] });
    if (now === this.shown) return; // what is ticked stays so: the server follows
    if (data.of !== this.of) this.chosen = new Set(data.chosen);
    this.shown = now;
    this.of = data.of;
    if (data.kept) {
      const age = data.kept.value ? 31536000 : 0;
      document.cookie = `${data.kept.name}=${data.kept.value}; path=/; max-age=${age}; SameSite=Lax`;
    }
    const had = this.root.activeElement?.dataset?.at;
    this.box.setAttribute("aria-label", data.caption);
    this.box.replaceChildren(this.table(data));
    if (had) this.box.querySelector(`[data-at="${had}"]`)?.focus({ preventScroll: true });
    this.tick(data);
    this.fit();
  }

  fit() {
    const { classList } = this.box;
    // Cards are longer, and the scroller that they may bring to the page takes some width.
    const spare = classList.contains("cards") ? 20 : 0;
    classList.remove("cards");
    classList.toggle("cards", this.box.scrollWidth > this.box.clientWidth - spare);
  }

  /** @param {Data} data */
  table(data) {
    const head = data.columns.map((c) => this.heading(c, data));
    if (data.several) {
      this.all = html("input", { type: "checkbox", "aria-label": "Choose all rows", "data-at": "all" });
      this.all.addEventListener("change", () => this.choose(
        data, this.all.checked ? [...data.rows.keys()] : []));
      head.unshift(html("th", { class: "tick" }, [html("label", {}, [this.all])]));
    }
    return html("table", {}, [
      html("caption", {}, [data.caption]),
      html("thead", {}, [html("tr", {}, head)]),
      html("tbody", {}, data.rows.map((row, k) => this.row(row, k, data))),
    ]);
  }

  /**
   * @param {Column} column
   * @param {Data} data
   */
  heading(column, data) {
    const key = column.sort.replace("-", "");
    const at = key && key === data.sorted.replace("-", "") ? data.sorted : "";
    const way = at && (at.startsWith("-") ? "descending" : "ascending");
    const attributes = { scope: "col", class: column.kind, "aria-sort": way || null };
    if (!key) return html("th", attributes, [column.label]);
    const arrow = html("span", { "aria-hidden": "true" }, [at.startsWith("-") ? "\u00a0↓" : "\u00a0↑"]);
    const button = html("button", { type: "button", "data-at": `sort-${key}` }, [
      column.label, ...(at ? [arrow] : [])]);
    const next = at === column.sort ? (at.startsWith("-") ? key : `-${key}`) : column.sort;
    button.addEventListener("click", () => this.emit("sort", { of: this.of, at: next }));
    return html("th", attributes, [button]);
  }

  /**
   * @param {Row} row
   * @param {number} k
   * @param {Data} data
   */
  row(row, k, data) {
    const cells = data.columns.map((column) => {
      const value = row.cells[column.name];
      const inside = value === null || value === "" ? data.dash : this.cell(value, column, row, k);
      const first = column.kind === "open";
      const attributes = { class: column.kind, scope: first ? "row" : null, "data-label": column.label };
      return html(first ? "th" : "td", attributes, [inside]);
    });
    if (data.several) {
      const named = data.columns.find((c) => c.kind === "open");
      const box = html("input", {
        type: "checkbox", "data-at": `tick-${k}`,
        "aria-label": `Choose ${named ? row.cells[named.name] : `row ${k + 1}`}`,
      });
      box.addEventListener("change", () => {
        const chosen = new Set(this.chosen);
        if (box.checked) chosen.add(k);
        else chosen.delete(k);
        this.choose(data, [...chosen]);
      });
      cells.unshift(html("td", { class: "tick" }, [html("label", {}, [box])]));
    }
    const line = html("tr", { class: row.href ? "opens" : null }, cells);
    line.addEventListener("click", (/** @type {MouseEvent} */ e) => this.clicked(e, row, k));
    return line;
  }

  /**
   * @param {string | number | Mark | Noted} value
   * @param {Column} column
   * @param {Row} row
   * @param {number} k
   */
  cell(value, column, row, k) {
    if (typeof value === "object" && "words" in value) {
      return html("span", {}, [value.words, html("small", {}, [value.note])]);
    }
    if (typeof value === "object") {
      return html("span", { class: `pill ${value.colour}` }, [
        html("span", { "aria-hidden": "true" }, [value.symbol]), value.word]);
    }
    if (column.kind === "share" && typeof value === "number") {
      const percent = `${Math.round(100 * value)} %`;
      const bar = html("span", { class: "bar", "aria-hidden": "true" });
      bar.style.setProperty("--share", `${100 * value}%`);
      return html("span", { class: "share" }, [bar, percent]);
    }
    if (column.kind === "open" && row.href) {
      return html("a", { href: row.href, "data-at": `open-${k}` }, [String(value)]);
    }
    return column.kind === "text" ? html("span", {}, [String(value)]) : String(value);
  }

  /**
   * @param {MouseEvent} event
   * @param {Row} row
   * @param {number} k
   */
  clicked(event, row, k) {
    const target = /** @type {Element} */ (event.target);
    const tick = target.closest(".tick");
    if (tick) {
      // Who misses the box by a little means it.
      if (target === tick) /** @type {any} */ (tick.querySelector("input")).click();
      return;
    }
    if (!row.href) return;
    const apart = event.ctrlKey || event.metaKey || event.shiftKey || event.altKey;
    if (apart) return; // a link opens a tab of its own, and a row nothing
    if (!target.closest("a") && getSelection()?.toString()) return; // words are being marked
    event.preventDefault();
    this.emit("open", { of: this.of, at: k });
  }

  /**
   * @param {Data} data
   * @param {number[]} chosen
   */
  choose(data, chosen) {
    this.chosen = new Set(chosen);
    this.tick(data);
    this.emit("choose", { of: this.of, at: [...this.chosen].sort((a, b) => a - b) });
  }

  /** @param {Data} data */
  tick(data) {
    if (!data.several) return;
    const boxes = this.box.querySelectorAll("tbody input");
    boxes.forEach((/** @type {HTMLInputElement} */ box, /** @type {number} */ k) => {
      box.checked = this.chosen.has(k);
      box.closest("tr")?.classList.toggle("chosen", box.checked);
    });
    this.all.checked = this.chosen.size === data.rows.length && data.rows.length > 0;
    this.all.indeterminate = this.chosen.size > 0 && !this.all.checked;
  }
}

export default component((root) => new Rows(root));
