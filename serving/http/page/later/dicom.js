/**
 * Reads a CT slice from a DICOM file whose pixels are not compressed, for a look through any window. The answer comes
 * from the service, which reads compressed files, too. No value of the header leaves this module but a slice's place.
 */

const PIXELS = 0x7fe00010;
const LONG = new Set(["OB", "OD", "OF", "OL", "OV", "OW", "SQ", "SV", "UC", "UN", "UR", "UT", "UV"]);
const IMPLICIT = "1.2.840.10008.1.2";
const DEFLATED = "1.2.840.10008.1.2.1.99";
const BIG = "1.2.840.10008.1.2.2";
const NATIVE = [IMPLICIT, "1.2.840.10008.1.2.1", DEFLATED, BIG];
/** Bytes that hold the header of a slice. */
const HEADER = 1 << 16;
const MOST_BYTES = 200e6;

/** Walks the elements of a data set: `found` maps tags to the places of their values. */
class Elements {
  constructor(view, { explicit = true, little = true } = {}) {
    Object.assign(this, { view, explicit, little, found: new Map(), at: 0 });
  }

  /** Read the tag and the length of the element at `at`, and move to its value. */
  next() {
    const { view, little } = this;
    const tag = view.getUint16(this.at, little) * 0x10000 + view.getUint16(this.at + 2, little);
    const kind = String.fromCharCode(view.getUint8(this.at + 4), view.getUint8(this.at + 5));
    const delimiter = tag >= 0xfffee000 && tag <= 0xfffeffff;
    if (!this.explicit || delimiter) {
      this.at += 8;
      return { tag, length: view.getUint32(this.at - 4, little) };
    }
    const long = LONG.has(kind);
    this.at += long ? 12 : 8;
    return { tag, length: long ? view.getUint32(this.at - 4, little) : view.getUint16(this.at - 2, little) };
  }

  /** Read elements up to the pixels, or while `wanted(tag)` is true. */
  walk(wanted = () => true) {
    while (this.at < this.view.byteLength) {
      const start = this.at;
      const { tag, length } = this.next();
      if (!wanted(tag)) {
        this.at = start;
        return;
      }
      this.found.set(tag, [this.at, length]);
      if (tag === PIXELS) return;
      if (length === 0xffffffff) this.skip();
      else this.at += length;
    }
  }

  /** Move behind a sequence of undefined length. */
  skip() {
    for (let depth = 1; depth > 0; ) {
      const { tag, length } = this.next();
      if (tag === 0xfffee0dd || tag === 0xfffee00d) depth -= 1;
      else if (length === 0xffffffff) depth += 1;
      else if (tag !== 0xfffee000) this.at += length; // an item of known length is walked through
    }
  }

  words(tag) {
    const [at, length] = this.found.get(tag) ?? [0, 0];
    return new TextDecoder("latin1").decode(new Uint8Array(this.view.buffer, this.view.byteOffset + at, length)).replace(/[\0 ]+$/, "").split("\\");
  }

  /** Return a number in text; NaN if it is missing. */
  decimal(tag) {
    const [word] = this.words(tag);
    return word.trim() ? Number(word) : NaN;
  }

  /** Return a number of two bytes; `missing` if there is none. */
  binary(tag, missing, signed = false) {
    const [at, length] = this.found.get(tag) ?? [0, 0];
    if (length < 2) return missing;
    return signed ? this.view.getInt16(at, this.little) : this.view.getUint16(at, this.little);
  }
}

async function parse(blob) {
  const meta = new Elements(new DataView(await blob.arrayBuffer(), 132));
  meta.walk((tag) => tag < 0x30000);
  const [syntax] = meta.words(0x00020010);
  let rest = new DataView(meta.view.buffer, 132 + meta.at);
  if (syntax === DEFLATED) rest = new DataView(await inflate(rest));
  return { syntax, elements: new Elements(rest, { explicit: syntax !== IMPLICIT, little: syntax !== BIG }) };
}

/** Inflate up to MOST_BYTES. A padding byte may follow the data, which ends the stream with an error. */
async function inflate(view) {
  const reader = new Blob([view]).stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const parts = [];
  try {
    for (let size = 0; size < MOST_BYTES; size += parts.at(-1).byteLength) {
      const { done, value } = await reader.read();
      if (done) break;
      parts.push(value);
    }
  } catch {
    // What is missing is noticed when the elements are read.
  }
  await reader.cancel().catch(() => {});
  return new Blob(parts).arrayBuffer();
}

/** Return the series of a slice and its place `along` the normal of its plane; its number if it names no place. */
export async function readPlace(file) {
  let parsed = await parse(file.slice(0, HEADER)).catch(() => null);
  parsed ??= await parse(file); // deflated, or a long header
  const { elements } = parsed;
  try {
    elements.walk((tag) => tag < PIXELS);
  } catch {
    // The header goes on behind HEADER. What was found before is enough.
  }
  const [x, y, z] = elements.words(0x00200032).map(Number);
  const [a, b, c, d, e, f] = elements.words(0x00200037).map(Number);
  const along = x * (b * f - c * e) + y * (c * d - a * f) + z * (a * e - b * d);
  const [series] = elements.words(0x0020000e);
  return { series, along: Number.isFinite(along) ? along : elements.decimal(0x00200013) || 0 };
}

/**
 * Return { rows, columns, units, inverted }: Hounsfield units by row, NaN for padding. Null for a file that this can't
 * read, such as one with compressed pixels or several frames.
 */
export async function readSlice(file) {
  if (file.size > MOST_BYTES) return null;
  const { syntax, elements } = await parse(file);
  if (!NATIVE.includes(syntax)) return null;
  elements.walk();
  const [rows, columns, allocated] = [0x00280010, 0x00280011, 0x00280100].map((tag) => elements.binary(tag, 0));
  const stored = elements.binary(0x00280101, allocated);
  const signed = elements.binary(0x00280103, 0) === 1;
  const [slope, intercept] = [elements.decimal(0x00281053), elements.decimal(0x00281052)];
  const [photometric] = elements.words(0x00280004);
  const [at, length] = elements.found.get(PIXELS) ?? [0, 0];
  const readable = (allocated === 16 || (allocated === 8 && syntax !== BIG)) && stored <= allocated && length >= (rows * columns * allocated) / 8 &&
    elements.binary(0x00280102, stored - 1) === stored - 1 && elements.binary(0x00280002, 1) === 1 &&
    !(elements.decimal(0x00280008) > 1) && photometric.startsWith("MONOCHROME") && Number.isFinite(slope * intercept);
  if (!readable || !rows || !columns) return null;
  const padding = elements.binary(0x00280120, NaN, signed);
  const limit = elements.binary(0x00280121, padding, signed);
  const [low, high] = [Math.min(padding, limit), Math.max(padding, limit)];
  const units = new Float64Array(rows * columns);
  for (let i = 0; i < units.length; i += 1) {
    let value = allocated === 8 ? elements.view.getUint8(at + i) : elements.view.getUint16(at + 2 * i, elements.little);
    value &= 2 ** stored - 1;
    if (signed && value >= 2 ** (stored - 1)) value -= 2 ** stored;
    units[i] = value >= low && value <= high ? NaN : value * slope + intercept;
  }
  return { rows, columns, units, inverted: photometric === "MONOCHROME1" };
}

/** Return RGBA pixels of a slice through the window of `level` and `width` Hounsfield units (DICOM PS3.3 C.11.2.1.2). */
export function throughWindow({ rows, columns, units, inverted }, level, width) {
  const picture = new ImageData(columns, rows);
  for (let i = 0; i < units.length; i += 1) {
    const share = Math.min(1, Math.max(0, (units[i] - (level - 0.5)) / (width - 1) + 0.5));
    picture.data.fill(255 * (inverted ? 1 - share : share), 4 * i, 4 * i + 3); // padding becomes 0
    picture.data[4 * i + 3] = 255;
  }
  return picture;
}
