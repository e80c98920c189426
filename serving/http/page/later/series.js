/** Makes stacks: slices of a DICOM series in the order of their places, and the pictures of a ZIP. */

import { ApiError } from "../api.js";
import { look } from "../intake.js";
import { readPlace } from "./dicom.js";
import { unpack } from "./zip.js";

/** Return the entries of intake.js's `gather`, each stack in a row. */
export async function sortIntoStacks(found) {
  const loose = [];
  const entries = [];
  for (const one of found) {
    if (!one.zip) loose.push(one);
    else entries.push(...(await opened(one)));
  }
  return [...(await stacked(loose)), ...entries];
}

async function opened({ file }) {
  try {
    const found = await Promise.all((await unpack(file)).map(look));
    if (!found.length) throw new ApiError({ code: "archive" });
    return await stacked(found, file.name);
  } catch (error) {
    return [{ file, error: error instanceof ApiError ? error : new ApiError({ code: "archive" }) }];
  }
}

/** Put slices of one series into a stack. With the `name` of a ZIP, its other pictures form a stack, too. */
async function stacked(found, name = "") {
  const groups = new Map();
  const entries = [];
  for (const { file, dicom } of found) {
    const place = dicom ? await readPlace(file).catch(() => ({})) : {};
    const entry = { file, dicom, ...place };
    const series = dicom ? place.series : name && "pictures";
    if (!series) entries.push(entry);
    else groups.set(series, [...(groups.get(series) ?? []), entry]);
  }
  for (const group of groups.values()) {
    const stack = { name: name || group[0].file.name, items: [] };
    group.sort((a, b) => (a.along ?? 0) - (b.along ?? 0) || a.file.name.localeCompare(b.file.name, undefined, { numeric: true }));
    entries.push(...group.map(({ file, dicom }) => ({ file, dicom, stack: group.length > 1 ? stack : undefined })));
  }
  return entries;
}
