// How Python writes values and reads texts, so that messages and numbers are the same here. Knows no encoder.
//
// JavaScript has one kind of number: a whole one is shown as Python shows an int, another one as a float.

const BLANKS = "\\t-\\r\\x1c-\\x20\\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000"; // of str.isspace
const AT_ENDS = new RegExp(`^[${BLANKS}]+|[${BLANKS}]+$`, "g");
const AROUND_FLOAT = new RegExp(AT_ENDS.source.replaceAll("\\x1c-\\x20", " "), "g"); // `float` passes over fewer of them
const UNPRINTABLE = /[\p{C}\p{Z}]/u;
const NUMBER = /^[+-]?(\d+(_\d+)*\.?(\d+(_\d+)*)?|\.\d+(_\d+)*)([eE][+-]?\d+(_\d+)*)?$/;
const NAMED = /^([+-]?)(inf|infinity|nan)$/i;
const DIGIT = /\p{Nd}/u;

/** Return the text without Python's white space at its ends, which is not that of `trim`. */
export function strip(text) {
  return text.replace(AT_ENDS, "");
}

/** The inside of a character class: what `\s` is in Python's regular expressions. */
export const WHITE = BLANKS;

/** Return `text` with every decimal digit of any script as one of 0 to 9. */
export function asciiDigits(text) {
  return DIGIT.test(text)
    ? Array.from(text, (character) => (DIGIT.test(character) ? digitOf(character) : character)).join("")
    : text;
}

function digitOf(character) {
  // Decimal digits stand in runs of ten, 0 first, so the distance to the start of the run is the value. Runs may touch.
  let code = character.codePointAt(0);
  let before = 0;
  while (DIGIT.test(String.fromCodePoint(code - 1))) {
    code -= 1;
    before += 1;
  }
  return String(before % 10);
}

/** Return what Python's `float(text)` is, null where that raises. */
export function floatOf(text) {
  const bare = asciiDigits(text.replace(AROUND_FLOAT, ""));
  if (NUMBER.test(bare)) return Number(bare.replaceAll("_", ""));
  const named = NAMED.exec(bare);
  if (named === null) return null;
  return named[2].toLowerCase() === "nan" ? NaN : named[1] === "-" ? -Infinity : Infinity;
}

/** Return `repr` of a float. */
export function floatRepr(value) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return Object.is(value, -0) ? "-0.0" : "0.0";
  const [mantissa, power] = Math.abs(value).toExponential().split("e");
  return (value < 0 ? "-" : "") + written(mantissa.replace(".", ""), Number(power), 16, true);
}

/** Return what Python's format `:g` makes of a number: six digits. */
export function general(value) {
  if (Number.isNaN(value)) return "nan";
  if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
  if (value === 0) return Object.is(value, -0) ? "-0" : "0";
  let [mantissa, power] = Math.abs(value).toExponential(5).split("e");
  const exact = Math.abs(value).toExponential(100).split("e")[0].replace(".", "");
  if (/^.{6}50*$/.test(exact) && Number(exact[5]) % 2 === 0) {
    // A tie: JavaScript takes the larger, Python the even.
    mantissa = exact.slice(0, 6);
    power = Math.abs(value).toExponential(100).split("e")[1];
  }
  const digits = mantissa.replace(".", "").replace(/0+$/, "");
  return (value < 0 ? "-" : "") + written(digits, Number(power), 6, false);
}

function written(digits, power, most, withPoint) {
  if (power < -4 || power >= most) {
    const mantissa = digits.length > 1 ? `${digits[0]}.${digits.slice(1)}` : digits;
    return `${mantissa}e${power < 0 ? "-" : "+"}${String(Math.abs(power)).padStart(2, "0")}`;
  }
  if (power < 0) return `0.${"0".repeat(-power - 1)}${digits}`;
  const whole = digits.slice(0, power + 1).padEnd(power + 1, "0");
  const rest = digits.slice(power + 1);
  return rest ? `${whole}.${rest}` : withPoint ? `${whole}.0` : whole;
}

/** Return whether Python would read this number of a JSON text as an int, as far as that is to be told. */
export function isWhole(value) {
  return Number.isSafeInteger(value) && !Object.is(value, -0);
}

/** Return `repr` of a value as JSON has it; undefined is None. */
export function repr(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  if (typeof value === "number") return isWhole(value) ? String(value) : floatRepr(value);
  if (typeof value === "string") return textRepr(value);
  if (Array.isArray(value) || ArrayBuffer.isView(value)) return `[${Array.from(value, repr).join(", ")}]`;
  if (typeof value === "object") {
    return `{${Object.entries(value)
      .map(([name, entry]) => `${repr(name)}: ${repr(entry)}`)
      .join(", ")}}`;
  }
  return String(value);
}

function textRepr(text) {
  const quote = text.includes("'") && !text.includes('"') ? '"' : "'";
  let shown = "";
  for (const character of text) {
    if (character === quote || character === "\\") shown += `\\${character}`;
    else if (character === "\n") shown += "\\n";
    else if (character === "\r") shown += "\\r";
    else if (character === "\t") shown += "\\t";
    else if (character !== " " && UNPRINTABLE.test(character)) {
      const code = character.codePointAt(0).toString(16);
      shown +=
        code.length <= 2
          ? `\\x${code.padStart(2, "0")}`
          : code.length <= 4
            ? `\\u${code.padStart(4, "0")}`
            : `\\U${code.padStart(8, "0")}`;
    } else shown += character;
  }
  return quote + shown + quote;
}

/** Return `repr` of a value, cut to 40 characters. */
export function shortRepr(value) {
  const shown = Array.from(repr(value));
  return shown.length <= 40 ? shown.join("") : `${shown.slice(0, 37).join("")}...`;
}

/** Return the name of the type that Python has of such a value. */
export function typeName(value) {
  if (value === null || value === undefined) return "NoneType";
  if (typeof value === "boolean") return "bool";
  if (typeof value === "number") return isWhole(value) ? "int" : "float";
  if (typeof value === "string") return "str";
  return Array.isArray(value) || ArrayBuffer.isView(value) ? "list" : "dict";
}

/** Return a tuple as Python writes it. */
export function tuple(values) {
  return values.length === 1 ? `(${values[0]},)` : `(${Array.from(values).join(", ")})`;
}

/** Return up to five names, each in quotes, and how many more there are; "none" of none. */
export function shownNames(names) {
  if (!names.length) return "none";
  return names.slice(0, 5).map(repr).join(", ") + (names.length > 5 ? ` and ${names.length - 5} more` : "");
}
