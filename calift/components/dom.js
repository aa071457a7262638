// @ts-check
// What the components are built with. Nothing here takes markup: names and captions come from
// people and become text nodes.

/**
 * An HTML element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean | null | undefined>} [attributes] null and false
 *   leave one out, true sets it empty
 * @param {Array<Node | string>} [children] text becomes text nodes
 * @returns {any}
 */
export function html(tag, attributes = {}, children = []) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children);
  return element;
}

/**
 * Keeps one object for each place that Streamlit draws a component in, and gives it what is new.
 * Streamlit calls a component's function again whenever its data change, and what it returned last
 * when the place goes.
 * @template D
 * @param {(root: any) => {show: (data: D, emit: (name: string, value: unknown) => void) => void,
 *   close: () => void}} make
 */
export function component(make) {
  const places = new WeakMap();
  return (/** @type {any} */ given) => {
    const root = given.parentElement;
    let made = places.get(root);
    if (!made) {
      made = make(root);
      places.set(root, made);
    }
    made.show(given.data, given.setTriggerValue);
    return () => {
      places.delete(root);
      made.close();
    };
  };
}
