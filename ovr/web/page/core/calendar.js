// Days and moments of the Gregorian calendar, years 1 to 9999, counted from 1970 as Python's datetime has them.

const DAY_US = 86_400_000_000n;
const FIRST = BigInt(daysOf(1, 1, 1)) * DAY_US;
const LAST = BigInt(daysOf(10_000, 1, 1)) * DAY_US - 1n;

/** Return whether a year has 366 days. */
export function isLeap(year) {
  return year % 4 === 0 && (year % 100 !== 0 || year % 400 === 0);
}

/** Return the number of days from 1970-01-01 to a day. */
export function daysOf(year, month, day) {
  const shifted = month <= 2 ? year - 1 : year; // years that begin in March
  const era = Math.floor(shifted / 400);
  const yearOfEra = shifted - era * 400;
  const dayOfYear = Math.floor((153 * (month + (month > 2 ? -3 : 9)) + 2) / 5) + day - 1;
  return era * 146_097 + yearOfEra * 365 + Math.floor(yearOfEra / 4) - Math.floor(yearOfEra / 100) + dayOfYear - 719_468;
}

/** Return [year, month, day] of a number of days from 1970-01-01. */
export function civil(days) {
  const shifted = days + 719_468;
  const era = Math.floor(shifted / 146_097);
  const day = shifted - era * 146_097;
  const year = Math.floor((day - Math.floor(day / 1460) + Math.floor(day / 36_524) - Math.floor(day / 146_096)) / 365);
  const dayOfYear = day - (365 * year + Math.floor(year / 4) - Math.floor(year / 100));
  const part = Math.floor((5 * dayOfYear + 2) / 153);
  const month = part < 10 ? part + 3 : part - 9;
  return [year + era * 400 + (month <= 2 ? 1 : 0), month, dayOfYear - Math.floor((153 * part + 2) / 5) + 1];
}

/** Return the number of days of a month. */
export function daysInMonth(year, month) {
  return month === 2 ? (isLeap(year) ? 29 : 28) : [4, 6, 9, 11].includes(month) ? 30 : 31;
}

/**
 * Return the seconds since 1970 of a moment, null where there is no such moment.
 *
 * @param {number[]} date year, month and day
 * @param {number[]} clock hour, minute, second and microsecond
 * @param {number|null} offset microseconds by which its zone is ahead of UTC; null without one
 */
export function secondsOf([year, month, day], [hour, minute, second, microsecond], offset = null) {
  if (year < 1 || year > 9999 || month < 1 || month > 12 || day < 1 || day > daysInMonth(year, month)) return null;
  if (hour > 23 || minute > 59 || second > 59) return null;
  if (offset !== null && Math.abs(offset) >= 86_400e6) return null;
  const clock = BigInt((hour * 60 + minute) * 60 + second) * 1_000_000n + BigInt(microsecond);
  const moment = BigInt(daysOf(year, month, day)) * DAY_US + clock - BigInt(offset ?? 0);
  if (moment < FIRST || moment > LAST) return null;
  const size = moment < 0n ? -moment : moment;
  const text = `${size / 1_000_000n}.${String(size % 1_000_000n).padStart(6, "0")}`; // read back, it is rounded once
  return moment < 0n ? -Number(text) : Number(text);
}

/** Return [days, microseconds of the day] of microseconds since 1970. */
export function splitDay(microseconds) {
  const whole = BigInt(microseconds);
  const within = ((whole % DAY_US) + DAY_US) % DAY_US;
  return [Number((whole - within) / DAY_US), Number(within)];
}

/** Return seconds since 1970 as ISO 8601, to the second. */
export function shownTime(seconds) {
  const [days, within] = splitDay(Math.round(seconds * 1e6));
  const [year, month, day] = civil(days);
  const clock = Math.floor(within / 1e6);
  const two = (number) => String(number).padStart(2, "0");
  const hms = [Math.floor(clock / 3600), Math.floor(clock / 60) % 60, clock % 60].map(two).join(":");
  return `${String(year).padStart(4, "0")}-${two(month)}-${two(day)}T${hms}`;
}
