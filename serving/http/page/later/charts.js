/** Draws the card's figures as SVG. Each chart carries its numbers in words, for screen readers. */

import { element, svg } from "../elements.js";
import { TEXT } from "../text.js";
import { percent, titleOf } from "../words.js";

const WORDS = TEXT.about;

const SIDE = 220;
const LEFT = 40;
const FOOT = 34;
const EDGE = 8;

const x = (share) => LEFT + share * (SIDE - LEFT - EDGE);
const y = (share) => SIDE - FOOT - share * (SIDE - FOOT - EDGE);

function figure([title, note], words, ...drawn) {
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${SIDE} ${SIDE}`, role: "img", "aria-label": words }, ...drawn);
  return element("figure", {}, picture, element("figcaption", {}, element("b", {}, title), ` ${note}`));
}

/** Draw both axes with their names. The horizontal one ends at 100 %, the vertical one at `most` (a share). */
function axes(across, up, most = 1) {
  const marks = [0, 0.5, 1].flatMap((share) => [
    svg("line", { class: "grid", x1: x(0), x2: x(1), y1: y(share), y2: y(share) }),
    svg("text", { x: x(share), y: SIDE - FOOT + 13, "text-anchor": "middle" }, `${100 * share}`),
    svg("text", { x: LEFT - 5, y: y(share) + 3, "text-anchor": "end" }, `${Math.round(100 * share * most)}`),
  ]);
  return [
    ...marks,
    svg("text", { x: x(0.5), y: SIDE - 6, "text-anchor": "middle" }, `${across}, %`),
    svg("text", { x: 10, y: y(0.5), "text-anchor": "middle", transform: `rotate(-90 10 ${y(0.5)})` }, `${up}, %`),
  ];
}

const point = (bin, digits) => WORDS.reliabilityPoint(bin.images, percent(bin.confidence, digits), percent(bin.accuracy, digits));

export function reliability({ reliability: bins }) {
  const most = Math.max(1, ...bins.map((bin) => bin.images));
  const dots = bins.filter((bin) => bin.images).map((bin) =>
    svg("circle", { cx: x(bin.confidence), cy: y(bin.accuracy), r: 2.5 + 3.5 * Math.sqrt(bin.images / most) },
      svg("title", {}, point(bin, 1))),
  );
  const words = bins.map((bin) => point(bin, 0)).join("; ");
  return figure(WORDS.reliability, `${WORDS.reliability[0].replace(".", ":")} ${words}.`, ...axes(WORDS.confidence, WORDS.right), svg("line", { class: "ideal", x1: x(0), y1: y(0), x2: x(1), y2: y(1) }), ...dots);
}

export function riskCoverage({ risk_coverage: points }) {
  const most = Math.max(0.1, Math.ceil(10 * Math.max(0, ...points.map((point) => point.risk))) / 10);
  const line = points.map((point) => `${x(point.coverage).toFixed(1)},${y(point.risk / most).toFixed(1)}`).join(" ");
  const words = points.map((point) => WORDS.riskPoint(percent(point.coverage, 0), percent(point.risk))).join("; ");
  return figure(WORDS.risk, `${WORDS.risk[0].replace(".", ":")} ${words}.`, ...axes(WORDS.answered, WORDS.errors, most), svg("polyline", { points: line }));
}

export function confusion({ confusion: counts }, model) {
  const names = model.classes.map((name) => titleOf(model, name));
  const cell = (SIDE - LEFT - EDGE) / counts.length;
  const letters = names.map((name) => name[0]);
  const drawn = counts.flatMap((row, i) => {
    const sum = Math.max(1, row.reduce((a, b) => a + b, 0));
    const top = EDGE + i * cell;
    return [
      svg("text", { x: LEFT - 6, y: top + cell / 2 + 4, "text-anchor": "end" }, letters[i]),
      svg("text", { x: LEFT + (i + 0.5) * cell, y: EDGE + counts.length * cell + 14, "text-anchor": "middle" }, letters[i]),
      ...row.flatMap((count, j) => [
        svg("rect", { class: i === j ? "right" : "wrong", x: LEFT + j * cell + 1, y: top + 1, width: cell - 2, height: cell - 2, "fill-opacity": (0.06 + (0.8 * count) / sum).toFixed(2) }),
        svg("text", { class: count / sum > 0.45 ? "count on" : "count", x: LEFT + (j + 0.5) * cell, y: top + cell / 2 + 4, "text-anchor": "middle" }, String(count),
          svg("title", {}, WORDS.confused(count, names[i], names[j]))),
      ]),
    ];
  });
  const words = counts.map((row, i) => `${names[i]}: ${row.map((count, j) => WORDS.as(count, names[j])).join(", ")}`).join("; ");
  const key = names.map((name, i) => `${letters[i]} ${name.toLowerCase()}`).join(", ");
  const [title, note] = WORDS.confusion;
  return figure([title, `${note} ${key}.`], `${title} ${words}.`, ...drawn);
}
