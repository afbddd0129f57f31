// The bytes of an ONNX file, as far as this must be known: metadata and initial values. Knows nothing of what a graph computes.
//
// A graph with cohorts has its input `cohort` twice: as an input and, so that it may be left out, as an initial value. ONNX Runtime on
// the web takes no such input at all; without the initial value it is an input as any other, and the graph computes the same.

import { ArtifactError } from "./errors.js";

const [GRAPH, METADATA] = [7, 14]; // fields of ModelProto
const [KEY, VALUE] = [1, 2]; // of StringStringEntryProto
const [INITIALIZER, NAME] = [5, 8]; // of GraphProto and TensorProto
const LENGTH_DELIMITED = 2;

/**
 * Return the text of an entry of the metadata, null where there is none of that key.
 *
 * @param {Uint8Array} bytes a ModelProto
 * @param {string} key
 * @throws {ArtifactError} the file is cut short
 */
export function metadataOf(bytes, key) {
  const entries = fieldsOf(bytes).filter((field) => field.number === METADATA);
  const found = entries.find((entry) => textOf(entry.content, KEY) === key);
  return found === undefined ? null : textOf(found.content, VALUE);
}

/**
 * Return the file without the initial value of a name.
 *
 * @param {Uint8Array} bytes a ModelProto
 * @param {string} name
 * @returns {Uint8Array}
 * @throws {ArtifactError} the file is cut short, or has no such initial value
 */
export function withoutInitializer(bytes, name) {
  const parts = [];
  let numLeftOut = 0;
  for (const field of fieldsOf(bytes)) {
    if (field.number !== GRAPH) {
      parts.push(field.whole);
      continue;
    }
    const all = fieldsOf(field.content);
    const kept = all.filter((part) => part.number !== INITIALIZER || textOf(part.content, NAME) !== name);
    numLeftOut += all.length - kept.length;
    const graph = joined(kept.map((part) => part.whole));
    parts.push(varint(GRAPH * 8 + LENGTH_DELIMITED), varint(graph.length), graph);
  }
  if (numLeftOut !== 1) throw new ArtifactError(`the graph has ${numLeftOut} initial values of ${name}; expected one`);
  return joined(parts);
}

function textOf(message, number) {
  const found = fieldsOf(message).find((part) => part.number === number);
  return found === undefined ? "" : new TextDecoder().decode(found.content);
}

/** Return the fields of a message: number, the whole field, and the content of those that have a length. */
function fieldsOf(bytes) {
  const fields = [];
  let at = 0;
  const number = () => {
    let value = 0;
    for (let power = 1; ; power *= 128) {
      if (at >= bytes.length || power > 2 ** 63) throw new ArtifactError("the model is no ONNX file: it is cut short");
      const byte = bytes[at];
      at += 1;
      value += (byte & 127) * power;
      if (byte < 128) return value;
    }
  };
  while (at < bytes.length) {
    const start = at;
    const key = number();
    const kind = key % 8;
    let size = { 1: 8, 5: 4 }[kind] ?? 0;
    if (kind === 0) number();
    if (kind === LENGTH_DELIMITED) size = number();
    if (![0, 1, 2, 5].includes(kind) || at + size > bytes.length)
      throw new ArtifactError("the model is no ONNX file: it is cut short");
    fields.push({ number: Math.floor(key / 8), content: bytes.subarray(at, at + size), whole: bytes.subarray(start, at + size) });
    at += size;
  }
  return fields;
}

function varint(value) {
  const bytes = [];
  let rest = value;
  for (; rest >= 128; rest = Math.floor(rest / 128)) bytes.push((rest % 128) + 128);
  return Uint8Array.from([...bytes, rest]);
}

function joined(parts) {
  const bytes = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    bytes.set(part, at);
    at += part.length;
  }
  return bytes;
}
