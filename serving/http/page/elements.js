/** Finds and makes HTML and SVG elements. */

export const byId = (id) => document.getElementById(id);

export const pngUrl = (base64) => `data:image/png;base64,${base64}`;

/** Make an element with properties and children (elements or text). */
export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

/** Make a mark on a bar's track. `place` holds `left` and `width` as shares of the track's width. */
export function onTrack(className, place) {
  const made = element("i", { className });
  for (const [side, share] of Object.entries(place)) made.style[side] = `${100 * share}%`;
  return made;
}

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const icon = (name) => svg("svg", { class: "icon", "aria-hidden": "true" }, svg("use", { href: `#icon-${name}` }));

/** Make a row of a <dl>. `code` sets the description in a monospaced font. */
export function row(term, description, code = false) {
  return element("div", {}, element("dt", {}, term), element("dd", { className: code ? "code" : "" }, description));
}
