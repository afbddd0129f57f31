// Checksums and hashes of texts, the same as Python's to the bit.

const TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit += 1) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/** Return a text as UTF-8; half of a surrogate pair that stands alone becomes three bytes, as with "surrogatepass". */
export function utf8(text) {
  const bytes = [];
  for (const character of text) {
    const code = character.codePointAt(0);
    if (code < 0x80) bytes.push(code);
    else if (code < 0x800) bytes.push(0xc0 | (code >> 6), 0x80 | (code & 0x3f));
    else if (code < 0x10000) bytes.push(0xe0 | (code >> 12), 0x80 | ((code >> 6) & 0x3f), 0x80 | (code & 0x3f));
    else bytes.push(0xf0 | (code >> 18), 0x80 | ((code >> 12) & 0x3f), 0x80 | ((code >> 6) & 0x3f), 0x80 | (code & 0x3f));
  }
  return bytes;
}

/** Return the CRC-32 of bytes, as `zlib.crc32(bytes, start)`. */
export function crc32(bytes, start = 0) {
  let value = ~start;
  for (const byte of bytes) value = TABLE[(value ^ byte) & 0xff] ^ (value >>> 8);
  return ~value >>> 0;
}

/** Return 32 bits of a text that are the same on every machine. */
export function textHash(text) {
  return crc32(utf8(text));
}

// Odd 64-bit constants of splitmix64 (Steele et al. 2014) and of Weyl's sequence.
const MIX_A = 0xbf58476d1ce4e5b9n;
const MIX_B = 0x94d049bb133111ebn;
export const PAIR = 0x9e3779b97f4a7c15n;

/** Return the low 64 bits. */
export function wrapped(value) {
  return BigInt.asUintN(64, value);
}

/** Return a hash whose every bit depends on every bit of the given one: the finaliser of splitmix64. */
export function mixed(hash) {
  let value = wrapped(hash + PAIR);
  value = wrapped((value ^ (value >> 30n)) * MIX_A);
  value = wrapped((value ^ (value >> 27n)) * MIX_B);
  return value ^ (value >> 31n);
}
