/** Sorts what the user gives into pictures and stacks. What unpacks and reads series is loaded when it is needed. */

const KINDS = { zip: /^PK\x03\x04/, dicom: /^.{128}DICM/s };

/** The first bytes of a file as text, one character each. Rejects if the file can't be opened. */
export const beginning = async (file) => String.fromCharCode(...new Uint8Array(await file.slice(0, 132).arrayBuffer()));

/**
 * Return an entry { file, dicom, stack, error } for each picture. Slices of a series, and the pictures of a ZIP, share a
 * stack { name, items } and are in its order.
 */
export async function gather(files) {
  const found = await Promise.all(files.map(look));
  const several = found.filter(({ dicom }) => dicom).length > 1;
  if (!several && !found.some(({ zip }) => zip)) return found;
  const { sortIntoStacks } = await import("./later/series.js");
  return sortIntoStacks(found);
}

export async function look(file) {
  const begins = await beginning(file).catch(() => "");
  return { file, zip: KINDS.zip.test(begins), dicom: KINDS.dicom.test(begins) };
}

/** Return the files of a drop, with those in folders. The folders must be asked for before the event is over. */
export async function dropped({ items, files }) {
  const entries = [...items].map((item) => item.webkitGetAsEntry?.());
  if (!entries.some((entry) => entry?.isDirectory)) return [...files];
  return (await Promise.all(entries.filter(Boolean).map(filesIn))).flat();
}

async function filesIn(entry) {
  if (!entry.isDirectory) return [await new Promise((resolve, reject) => entry.file(resolve, reject))];
  const reader = entry.createReader();
  const inside = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // a hundred at a time
    if (!some.length) break;
    inside.push(...some);
  }
  return (await Promise.all(inside.filter(({ name }) => !name.startsWith(".") && name !== "DICOMDIR").map(filesIn))).flat();
}
