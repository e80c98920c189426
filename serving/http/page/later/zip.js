/** Unpacks a ZIP in the browser. The archive may be hostile, so entries and bytes are counted as they come. */

import { ApiError } from "../api.js";

const MOST_ENTRIES = 2000;
const MOST_BYTES = 1e9;
const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LOCAL = 0x04034b50;
/** Longest end record: 22 bytes and a comment. */
const LONGEST_END = 22 + 65535;
const SKIPPED = /\/$|(^|\/)(\.|__MACOSX\/|DICOMDIR$)/;

/** Return the files in the archive. Throws ApiError if it is too large, and other errors if it is damaged. */
export async function unpack(file) {
  const tail = new DataView(await file.slice(-LONGEST_END).arrayBuffer());
  let at = tail.byteLength - 22;
  while (at >= 0 && tail.getUint32(at, true) !== END) at -= 1;
  if (at < 0) throw new RangeError("no end");
  const count = tail.getUint16(at + 10, true);
  const directory = tail.getUint32(at + 16, true);
  if (count > MOST_ENTRIES) throw new ApiError({ code: "archive_too_large" });
  const view = new DataView(await file.slice(directory).arrayBuffer());
  const files = [];
  let room = MOST_BYTES;
  for (let place = 0, i = 0; i < count; i += 1) {
    if (view.getUint32(place, true) !== ENTRY) throw new RangeError("no entry");
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(place + offset, true));
    const name = new TextDecoder().decode(new Uint8Array(view.buffer, place + 46, nameLength));
    if (!SKIPPED.test(name)) {
      const parts = await inflate(file, view, place, room);
      room -= parts.reduce((sum, part) => sum + part.byteLength, 0);
      files.push(new File(parts, name));
    }
    place += 46 + nameLength + extra + comment;
  }
  return files;
}

/** Return the content of the entry at `place` of the directory as pieces of at most `room` bytes together. */
async function inflate(file, view, place, room) {
  const method = view.getUint16(place + 10, true);
  const packed = view.getUint32(place + 20, true);
  const local = view.getUint32(place + 42, true);
  const head = new DataView(await file.slice(local, local + 30).arrayBuffer());
  if (view.getUint16(place + 8, true) & 1 || head.getUint32(0, true) !== LOCAL) throw new RangeError("encrypted or damaged");
  const start = local + 30 + head.getUint16(26, true) + head.getUint16(28, true);
  const blob = file.slice(start, start + packed);
  if (![0, 8].includes(method)) throw new RangeError("another compression");
  const stream = method ? blob.stream().pipeThrough(new DecompressionStream("deflate-raw")) : blob.stream();
  const parts = [];
  for (const reader = stream.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) return parts;
    parts.push(value);
    room -= value.byteLength;
    if (room < 0) {
      await reader.cancel();
      throw new ApiError({ code: "archive_too_large" });
    }
  }
}
