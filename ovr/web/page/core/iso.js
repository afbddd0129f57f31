// Dates and times of ISO 8601 as `datetime.fromisoformat` of Python 3.11 reads them.

import { daysOf, civil, isLeap, secondsOf } from "./calendar.js";

const DIGITS = /^[0-9]+$/;

/** Return the seconds since 1970, null of what is no date or time; one of a zone is taken to UTC, one without as it is. */
export function isoSeconds(text) {
  const characters = Array.from(text);
  if (characters.length < 7) return null;
  const at = separatorOf(characters);
  const date = dateOf(characters.slice(0, at).join(""));
  if (date === null) return null;
  return characters.length === at ? secondsOf(date, [0, 0, 0, 0]) : withClock(date, characters.slice(at + 1).join(""));
}

function separatorOf(characters) {
  const isDigit = (at) => at < characters.length && DIGITS.test(characters[at]);
  if (characters.length === 7) return 7;
  if (characters[4] === "-") {
    if (characters[5] !== "W") return 10;
    if (characters[8] !== "-") return 8;
    return characters.length > 10 && isDigit(10) ? 8 : 10;
  }
  if (characters[4] !== "W") return 8;
  let at = 7;
  while (isDigit(at)) at += 1;
  if (at < 9) return at;
  return at % 2 === 0 ? 7 : 8;
}

function dateOf(text) {
  const day = /^(\d{4})(-?)(\d\d)\2(\d\d)$/.exec(text);
  if (day !== null) return [Number(day[1]), Number(day[3]), Number(day[4])];
  const week = /^(\d{4})(-?)W(\d\d)(?:\2(\d))?$/.exec(text);
  return week === null ? null : dateOfWeek(Number(week[1]), Number(week[3]), Number(week[4] ?? 1));
}

function dateOfWeek(year, week, day) {
  if (year < 1 || year > 9999 || week < 1 || week > 53 || day < 1 || day > 7) return null;
  const first = daysOf(year, 1, 1);
  const weekday = (((first + 3) % 7) + 7) % 7; // Monday is 0
  if (week === 53 && weekday !== 3 && !(weekday === 2 && isLeap(year))) return null;
  const monday = first - weekday + (weekday > 3 ? 7 : 0); // week 1 is the one with the first Thursday
  return civil(monday + (week - 1) * 7 + day - 1);
}

function withClock(date, text) {
  const found = /^([^+\-Z]*)(?:(Z)|([+-])(.*))?$/s.exec(text);
  const clock = found && clockOf(found[1]);
  if (!clock) return null;
  if (found[2] !== undefined) return secondsOf(date, clock, 0);
  if (found[3] === undefined) return secondsOf(date, clock);
  const ahead = clockOf(found[4]);
  if (ahead === null) return null;
  const [hours, minutes, seconds, microseconds] = ahead;
  const offset = ((hours * 60 + minutes) * 60 + seconds) * 1e6 + microseconds;
  return secondsOf(date, clock, found[3] === "-" ? -offset : offset);
}

// HH, HH:MM, HH:MM:SS and HH:MM:SS.f, or all of it without the colons. What Python lets pass beyond that - 10:30.5, or a sign that
// means nothing before a zone - differs from one of its versions to the next, and is refused.
function clockOf(text) {
  const found = /^(\d\d)(?::(\d\d)(?::(\d\d)(?:[.,](\d+))?)?|(\d\d)(?:(\d\d)(?:[.,](\d+))?)?)?$/.exec(text);
  if (found === null) return null;
  const fraction = Number((found[4] ?? found[7] ?? "").slice(0, 6).padEnd(6, "0"));
  return [Number(found[1]), Number(found[2] ?? found[5] ?? 0), Number(found[3] ?? found[6] ?? 0), fraction];
}
