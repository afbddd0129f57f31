// SHA-256 (FIPS 180-4). The browser's own where it gives it: not on pages from file:// or from http:// on a local network.

const PRIMES = firstPrimes(64);
const K = Uint32Array.from(PRIMES, (prime) => fraction(Math.cbrt(prime)));
const START = Uint32Array.from(PRIMES.slice(0, 8), (prime) => fraction(Math.sqrt(prime)));

/**
 * Return the SHA-256 of bytes as 64 hexadecimal digits.
 *
 * @param {Uint8Array} bytes
 * @param {SubtleCrypto|undefined} subtle
 * @returns {Promise<string>}
 */
export async function sha256(bytes, subtle = globalThis.crypto?.subtle) {
  const digest = subtle === undefined ? sha256Bytes(bytes) : new Uint8Array(await subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Return the 32 bytes of the SHA-256, in plain JavaScript.
 *
 * @param {Uint8Array} bytes
 * @returns {Uint8Array}
 */
export function sha256Bytes(bytes) {
  const state = START.slice();
  const words = new Uint32Array(64);
  const whole = bytes.length - (bytes.length % 64);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = 0; at < whole; at += 64) addBlock(state, words, view, at);
  const rest = bytes.length - whole;
  const tail = new Uint8Array(rest < 56 ? 64 : 128);
  tail.set(bytes.subarray(whole));
  tail[rest] = 0x80;
  const tailView = new DataView(tail.buffer);
  tailView.setBigUint64(tail.length - 8, BigInt(bytes.length) * 8n);
  for (let at = 0; at < tail.length; at += 64) addBlock(state, words, tailView, at);
  const digest = new DataView(new ArrayBuffer(32));
  state.forEach((word, at) => digest.setUint32(4 * at, word));
  return new Uint8Array(digest.buffer);
}

function addBlock(state, words, view, start) {
  for (let t = 0; t < 16; t += 1) words[t] = view.getUint32(start + 4 * t);
  for (let t = 16; t < 64; t += 1) {
    const [near, far] = [words[t - 2], words[t - 15]];
    const one = rotated(near, 17) ^ rotated(near, 19) ^ (near >>> 10);
    const zero = rotated(far, 7) ^ rotated(far, 18) ^ (far >>> 3);
    words[t] = one + words[t - 7] + zero + words[t - 16];
  }
  let [a, b, c, d, e, f, g, h] = state;
  for (let t = 0; t < 64; t += 1) {
    const mixed = (rotated(e, 6) ^ rotated(e, 11) ^ rotated(e, 25)) >>> 0;
    const first = (h + mixed + (((e & f) ^ (~e & g)) >>> 0) + K[t] + words[t]) >>> 0;
    const turned = (rotated(a, 2) ^ rotated(a, 13) ^ rotated(a, 22)) >>> 0;
    const second = (turned + (((a & b) ^ (a & c) ^ (b & c)) >>> 0)) >>> 0;
    h = g;
    g = f;
    f = e;
    e = (d + first) >>> 0;
    d = c;
    c = b;
    b = a;
    a = (first + second) >>> 0;
  }
  [a, b, c, d, e, f, g, h].forEach((word, at) => {
    state[at] += word;
  });
}

function rotated(word, bits) {
  return (word >>> bits) | (word << (32 - bits));
}

function firstPrimes(count) {
  const primes = [];
  for (let n = 2; primes.length < count; n += 1) if (primes.every((prime) => n % prime)) primes.push(n);
  return primes;
}

function fraction(value) {
  return Math.floor((value - Math.floor(value)) * 2 ** 32);
}
