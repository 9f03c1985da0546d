// Numbers for people.

export const MISSING = "–";

/** 1.2345 → "1.234"; 0.00012 → "1.2e-4"; 12345.6 → "12,346" */
export function number(value, digits = 4) {
  if (!Number.isFinite(value)) return Number.isNaN(value) || value === undefined || value === null ? MISSING : "∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e9)) return value.toExponential(1).replace("e+", "e");
  if (size >= 1000) return Math.round(value).toLocaleString("en-US");
  return String(Number(value.toPrecision(digits)));
}

/** 134515008 → "135 M" */
export function count(value) {
  if (!(value >= 1000)) return number(value);
  const power = Math.min(3, Math.floor(Math.log10(value) / 3));
  return `${Number((value / 1000 ** power).toPrecision(3))} ${["", "K", "M", "B"][power]}`;
}

/** 0 is "not measured" for bytes. */
export function bytes(value) {
  if (!(value > 0)) return MISSING;
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(units.length - 1, Math.floor(Math.log2(value) / 10));
  const scaled = value / 1024 ** power;
  return `${scaled >= 100 || power === 0 ? Math.round(scaled) : scaled.toFixed(1)} ${units[power]}`;
}

/** A guess: nobody knows whether it will take 0.2 or 0.4 seconds. */
export const guess = (seconds) => (seconds < 1 ? "< 1 s" : duration(seconds));

/** 75 → "1 min 15 s" */
export function duration(seconds) {
  if (!Number.isFinite(seconds) || seconds < 0) return MISSING;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  const hours = Math.floor(whole / 3600);
  if (hours < 48) return `${hours} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}
