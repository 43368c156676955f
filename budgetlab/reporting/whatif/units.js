// Amounts with units, read and printed as budgetlab/units.py does.
"use strict";

const PREFIX = { "": 1, k: 1e3, K: 1e3, M: 1e6, G: 1e9, B: 1e9, T: 1e12, P: 1e15, E: 1e18, Z: 1e21 };
const TIME = { s: 1, sec: 1, second: 1, min: 60, minute: 60, h: 3600, hour: 3600, d: 86400, day: 86400 };
const ENERGY = { j: 1, joule: 1, kj: 1e3, mj: 1e6, wh: 3600, kwh: 3.6e6 };
const BUDGET_UNITS = ["required_flops", "executed_flops", "wall_seconds", "device_seconds", "joules", "usd", "tokens"];
const NUMBER = /^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$/;

const singular = (word) => word.replace(/s+$/, "");
const has = (table, name) => Object.prototype.hasOwnProperty.call(table, name);

function splitNumber(text, asked) {
  const found = NUMBER.exec(text);
  if (!found) throw new Error(`${asked} '${text}': not an amount; write a number with a unit, such as "4 h"`);
  const value = Number(found[1].replaceAll("_", ""));
  if (!Number.isFinite(value) || value <= 0) {
    throw new Error(`${asked} '${text}': an amount must be finite and above zero; give a positive one`);
  }
  return [value, found[2]];
}

/** Read a whole number of things: 8192, "0.3M", "2.6B tokens"; a BigInt. */
function parseCount(text) {
  const [value, rest] = splitNumber(text, "count"), suffix = rest.replace(/tokens?$/, "").trim();
  if (!has(PREFIX, suffix)) throw new Error(`count '${text}': no prefix '${suffix}'; known: k, K, M, G, B, T, P, E, Z`);
  const count = value * PREFIX[suffix], whole = roundHalfEven(count);
  if (Math.abs(count - whole) > 1e-6 * count) throw new Error(`count '${text}': not a whole number; give a whole one`);
  return BigInt(whole);
}

/** Read an amount of one thing: "4 h" (wall time), "8 gpu-hours", "1e18 flops", "2 kWh", "10 usd", "4.6B tokens". */
function parseAmount(text, defaultUnit) {
  const [value, suffix] = splitNumber(text, "budget");
  const amount = (scale, unit) => ({ amount: value * scale, unit });
  if (!suffix) return amount(1, defaultUnit);
  const word = suffix.toLowerCase().replaceAll(" ", "-");
  if (BUDGET_UNITS.includes(word)) return amount(1, word);
  const device = /^(?:gpu|device|cpu)-(.*)$/.exec(word);
  if (device && has(TIME, singular(device[1]))) return amount(TIME[singular(device[1])], "device_seconds");
  const one = word === "s" ? word : singular(word);
  if (has(TIME, one)) return amount(TIME[one], "wall_seconds");
  if (has(ENERGY, one)) return amount(ENERGY[one], "joules");
  if (["usd", "$", "dollar", "dollars"].includes(word)) return amount(1, "usd");
  const flops = /^([kmgtpez]?)-?(required-|executed-)?flops?$/i.exec(suffix.replaceAll(" ", "-"));
  if (flops) {
    const unit = (flops[2] ?? "").toLowerCase() === "executed-" ? "executed_flops" : "required_flops";
    return amount(PREFIX[flops[1]] ?? PREFIX[flops[1].toUpperCase()], unit);
  }
  const tokens = /^([kKMGBT]?)\s*-?tokens?$/.exec(suffix);
  if (tokens) return amount(PREFIX[tokens[1]], "tokens");
  const known = "flops, executed flops, s, min, h, day, gpu-hours, J, kWh, usd, tokens";
  throw new Error(`budget '${text}': no unit '${suffix}'; known: ${known}`);
}

/** Python's f"{value:.Nf}": toFixed, but exact halves go to the even digit. */
function fixed(value, decimals) {
  if (Math.abs(value) >= 1e21) return BigInt(value) + (decimals ? `.${"0".repeat(decimals)}` : "");
  const shown = value.toFixed(decimals);
  const digits = Math.abs(value).toFixed(100);
  const rest = digits.slice(digits.indexOf(".") + 1 + decimals);
  if (!/^50*$/.test(rest)) return shown;
  const down = digits.slice(0, decimals ? digits.length - rest.length : digits.indexOf("."));
  return Number(down.at(-1)) % 2 === 0 ? (value < 0 ? "-" : "") + down : shown;
}

function significant(number, digits) {
  if (number === 0) return "0";
  let decimals = digits - 1, size = Math.abs(number);
  for (; size >= 10; size /= 10) decimals--;
  for (; size < 1; size *= 10) decimals++;
  return fixed(number, Math.min(100, Math.max(0, decimals)));
}

const SCALES = [["Z", 1e21], ["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]];

/** Print a value with an SI prefix: 3.4e18, "FLOP" -> "3.40 EFLOP"; null -> "n/a". */
function formatQuantity(value, unit = "") {
  if (value === null || !Number.isFinite(value)) return "n/a";
  const found = SCALES.find(([, scale]) => Math.abs(value) >= scale * (1 - 0.5 * 0.001)) ?? ["", 1];
  const bare = unit === "" || unit === "tokens", prefix = bare && found[0] === "G" ? "B" : found[0];
  const number = significant(value / found[1], 3);
  return (bare ? `${number}${prefix} ${unit}` : `${number} ${prefix}${unit}`).trim();
}

function formatSeconds(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "n/a";
  if (seconds < 60) return `${fixed(seconds, 1)} s`;
  if (seconds < 3600) {
    return `${Math.floor(seconds / 60)} min ${String(Math.floor(seconds % 60)).padStart(2, "0")} s`;
  }
  return seconds < 172800 ? `${fixed(seconds / 3600, 1)} h` : `${fixed(seconds / 86400, 1)} days`;
}

/** Print an amount of a budget unit, such as 1e13, "required_flops" -> "10.0 TFLOP". */
function formatAmount(amount, unit) {
  if (unit.endsWith("_flops")) return formatQuantity(amount, "FLOP") + (unit.startsWith("executed") ? " executed" : "");
  if (unit.endsWith("_seconds")) return formatSeconds(amount) + (unit.startsWith("device") ? " device time" : "");
  if (unit === "joules") return formatQuantity(amount, "J");
  return unit === "usd" ? `${fixed(amount, 2)} USD` : formatQuantity(amount, "tokens");
}
