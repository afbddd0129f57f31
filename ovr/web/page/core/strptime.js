// Times in the formats of Python's `datetime.strptime`, with the English names of the C locale.

import { civil, daysOf, secondsOf, splitDay } from "./calendar.js";
import { ArtifactError } from "./errors.js";
import { asciiDigits, repr, WHITE } from "./python_words.js";

const MONTHS = "january february march april may june july august september october november december".split(" ");
const DAYS = "monday tuesday wednesday thursday friday saturday sunday".split(" ");
const short = (names) => names.map((name) => name.slice(0, 3));
const longestFirst = (names) => [...names].sort((one, other) => other.length - one.length).join("|");
const D = "\\p{Nd}";

const PATTERNS = {
  d: `3[0-1]|[1-2]${D}|0[1-9]|[1-9]| [1-9]`,
  f: "[0-9]{1,6}",
  H: `2[0-3]|[0-1]${D}|${D}`,
  I: "1[0-2]|0[1-9]|[1-9]",
  j: `36[0-6]|3[0-5]${D}|[1-2]${D}${D}|0[1-9]${D}|00[1-9]|[1-9]${D}|0[1-9]|[1-9]`,
  m: "1[0-2]|0[1-9]|[1-9]",
  M: `[0-5]${D}|${D}`,
  S: `6[0-1]|[0-5]${D}|${D}`,
  y: `${D}${D}`,
  Y: `${D}${D}${D}${D}`,
  z: `[+-]${D}${D}:?[0-5]${D}(?::?[0-5]${D}(?:\\.${D}{1,6})?)?|Z`,
  A: longestFirst(DAYS),
  a: longestFirst(short(DAYS)),
  B: longestFirst(MONTHS),
  b: longestFirst(short(MONTHS)),
  p: "am|pm",
};

/** One format, read once. */
export class TimeFormat {
  /**
   * @param {string} format of strptime
   * @throws {ArtifactError} a directive that is not known here: that of week numbers, of zone names and of whole dates of a locale
   */
  constructor(format) {
    this._format = format;
    const escaped = format.replace(/[\\^$.*+?(){}[\]|/]/g, "\\$&").replace(new RegExp(`[${WHITE}]+`, "g"), `[${WHITE}]+`);
    const pattern = escaped.replace(/%(.?)/gsu, (_, directive) => {
      if (directive === "%") return "%";
      if (!Object.hasOwn(PATTERNS, directive)) {
        throw new ArtifactError(
          `the time format ${repr(format)} has %${directive}, which a browser's predictor does not read; it reads ` +
            `${Object.keys(PATTERNS)
              .map((known) => `%${known}`)
              .join(", ")}`,
        );
      }
      return `(?<${directive}>${PATTERNS[directive]})`;
    });
    try {
      this._pattern = new RegExp(pattern, "iuy");
    } catch {
      throw new ArtifactError(`the time format ${repr(format)} cannot be read: it names a part twice`);
    }
  }

  /** Return the seconds since 1970, null of a text of another format. */
  seconds(text) {
    this._pattern.lastIndex = 0;
    const found = this._pattern.exec(text);
    if (found === null || found[0].length !== text.length) return null;
    const parts = Object.fromEntries(Object.entries(found.groups ?? {}).map(([name, part]) => [name, asciiDigits(part)]));
    const date = dateOf(parts);
    const offset = parts.z === undefined ? null : offsetOf(parts.z);
    if (date === null || Number.isNaN(offset)) return null;
    const clock = [hourOf(parts), Number(parts.M ?? 0), Number(parts.S ?? 0), Number((parts.f ?? "").padEnd(6, "0"))];
    return secondsOf(date, clock, offset);
  }

  /** Return seconds since 1970 as a text of this format, with less where it has no parts for all of it. */
  written(seconds) {
    const [days, within] = splitDay(Math.floor(seconds * 1e6));
    const parts = partsOf(civil(days), days, within);
    return this._format.replace(/%(.?)/gsu, (_, directive) => (directive === "%" ? "%" : parts[directive]));
  }
}

/** Return what each directive stands for in a time: a day, also as days since 1970, and microseconds within it. */
function partsOf([year, month, day], days, within) {
  const padded = (number, size = 2) => String(number).padStart(size, "0");
  const capital = (name) => name[0].toUpperCase() + name.slice(1);
  const clock = Math.floor(within / 1e6);
  const hour = Math.floor(clock / 3600);
  const [weekday, monthName] = [capital(DAYS[(((days + 3) % 7) + 7) % 7]), capital(MONTHS[month - 1])];
  return {
    d: padded(day),
    f: padded(within % 1e6, 6),
    H: padded(hour),
    I: padded(hour % 12 || 12),
    j: padded(days - daysOf(year, 1, 1) + 1, 3),
    m: padded(month),
    M: padded(Math.floor(clock / 60) % 60),
    S: padded(clock % 60),
    y: padded(year % 100),
    Y: padded(year, 4),
    z: "+0000",
    A: weekday,
    a: weekday.slice(0, 3),
    B: monthName,
    b: monthName.slice(0, 3),
    p: hour < 12 ? "AM" : "PM",
  };
}

function dateOf(parts) {
  let year = Number(parts.Y ?? 1900);
  if (parts.Y === undefined && parts.y !== undefined) year = Number(parts.y) + (Number(parts.y) <= 68 ? 2000 : 1900);
  if (parts.j !== undefined) return year < 1 ? null : civil(daysOf(year, 1, 1) + Number(parts.j) - 1);
  let month = Number(parts.m ?? 1);
  if (parts.B !== undefined) month = MONTHS.indexOf(parts.B.toLowerCase()) + 1;
  if (parts.b !== undefined) month = short(MONTHS).indexOf(parts.b.toLowerCase()) + 1;
  return [year, month, Number(parts.d ?? 1)];
}

function hourOf(parts) {
  if (parts.I === undefined) return Number(parts.H ?? 0);
  const hour = Number(parts.I) % 12;
  return parts.p?.toLowerCase() === "pm" ? hour + 12 : hour;
}

function offsetOf(zone) {
  if (zone === "Z") return 0;
  const found = /^([+-])(\d\d)(:?)(\d\d)(?:(:?)(\d\d)(?:\.(\d+))?)?$/.exec(zone);
  if (found === null || (found[6] !== undefined && found[3] !== found[5])) return NaN;
  const seconds = (Number(found[2]) * 60 + Number(found[4])) * 60 + Number(found[6] ?? 0);
  const offset = seconds * 1e6 + Number((found[7] ?? "").padEnd(6, "0"));
  return found[1] === "-" ? -offset : offset;
}
