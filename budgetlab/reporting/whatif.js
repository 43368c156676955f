// The what-if planner of the page: amounts as units.py reads and prints them, the planner's arithmetic, and the form.
//
// Every product, quotient and floor is taken in the order in which Python takes it, so that steps are equal and not
// merely close; tests/reporting/test_whatif.py holds the two against each other. Tokens are BigInt, because a large
// budget buys more of them than a double can count. Above the form nothing knows of a document.
"use strict";

const PREFIX = { "": 1, k: 1e3, K: 1e3, M: 1e6, G: 1e9, B: 1e9, T: 1e12, P: 1e15, E: 1e18, Z: 1e21 };
const SCALES = [["Z", 1e21], ["E", 1e18], ["P", 1e15], ["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3], ["", 1]];
const TIME = { s: 1, sec: 1, second: 1, min: 60, minute: 60, h: 3600, hour: 3600, d: 86400, day: 86400 };
const ENERGY = { j: 1, joule: 1, kj: 1e3, mj: 1e6, wh: 3600, kwh: 3.6e6 };
const UNITS = ["required_flops", "executed_flops", "wall_seconds", "device_seconds", "joules", "usd", "tokens"];
const NUMBER = /^\s*([+-]?(?:\d[\d_]*\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(.*?)\s*$/;
const DATA_HALF_LIFE_PASSES = 15.387756; // R_D* of the planner

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
  const [value, rest] = splitNumber(text, "count"), prefix = rest.replace(/tokens?$/, "").trim();
  if (!Object.hasOwn(PREFIX, prefix)) throw new Error(`count '${text}': no prefix '${prefix}'; use k, M, B, T, P, E`);
  const count = value * PREFIX[prefix], whole = roundHalfEven(count);
  if (Math.abs(count - whole) > 1e-6 * count) throw new Error(`count '${text}': not a whole number; give a whole one`);
  return BigInt(whole);
}

/** Read an amount of one thing: "4 h" (wall time), "8 gpu-hours", "1e18 flops", "2 kWh", "10 usd", "4.6B tokens". */
function parseAmount(text, defaultUnit) {
  const [value, suffix] = splitNumber(text, "budget");
  const amount = (scale, unit) => ({ amount: value * scale, unit });
  const hyphened = suffix.replaceAll(" ", "-"), word = hyphened.toLowerCase();
  if (!suffix || UNITS.includes(word)) return amount(1, word || defaultUnit);
  if (["usd", "$", "dollar", "dollars"].includes(word)) return amount(1, "usd");
  const [, device, plural] = /^(gpu-|device-|cpu-)?(.*)$/.exec(word);
  const one = word === "s" ? word : plural.replace(/s+$/, "");
  if (Object.hasOwn(TIME, one)) return amount(TIME[one], device ? "device_seconds" : "wall_seconds");
  if (!device && Object.hasOwn(ENERGY, one)) return amount(ENERGY[one], "joules");
  const flops = /^([kmgtpez]?)-?(required-|executed-)?flops?$/i.exec(hyphened);
  if (flops) {
    const unit = /^executed-/i.test(flops[2] ?? "") ? "executed_flops" : "required_flops";
    return amount(PREFIX[flops[1]] ?? PREFIX[flops[1].toUpperCase()], unit);
  }
  const tokens = /^([kKMGBT]?)\s*-?tokens?$/.exec(suffix);
  if (tokens) return amount(PREFIX[tokens[1]], "tokens");
  const known = "flops, executed flops, s, min, h, day, gpu-hours, J, kWh, usd, tokens";
  throw new Error(`budget '${text}': no unit '${suffix}'; known: ${known}`);
}

/** Python's round(): halves go to the even neighbour. */
function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Python's f"{value:.Nf}": toFixed, but exact halves go to the even digit. */
function fixed(value, decimals) {
  if (Math.abs(value) >= 1e21) return BigInt(value) + (decimals ? `.${"0".repeat(decimals)}` : "");
  const exact = value.toFixed(100), end = exact.indexOf(".") + 1 + decimals;
  const down = exact.slice(0, decimals ? end : end - 1), isHalf = /^50*$/.test(exact.slice(end));
  return isHalf && Number(down.at(-1)) % 2 === 0 ? down : value.toFixed(decimals);
}

/** Print a value with an SI prefix: 3.4e18, "FLOP" -> "3.40 EFLOP"; null -> "n/a". */
function formatQuantity(value, unit = "") {
  if (value === null || !Number.isFinite(value)) return "n/a";
  const [letter, scale] = SCALES.find(([, size]) => Math.abs(value) >= size * (1 - 0.5 * 0.001)) ?? ["", 1];
  const bare = unit === "" || unit === "tokens", prefix = bare && letter === "G" ? "B" : letter;
  let decimals = value === 0 ? 0 : 2, size = Math.abs(value / scale);
  for (; size >= 10; size /= 10) decimals--;
  for (; size && size < 1; size *= 10) decimals++;
  const number = fixed(value / scale, Math.min(100, Math.max(0, decimals)));
  return (bare ? `${number}${prefix} ${unit}` : `${number} ${prefix}${unit}`).trim();
}

function formatSeconds(seconds) {
  if (seconds === null || !Number.isFinite(seconds)) return "n/a";
  const rest = String(Math.floor(seconds % 60)).padStart(2, "0");
  if (seconds < 60) return `${fixed(seconds, 1)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${rest} s`;
  return seconds < 172800 ? `${fixed(seconds / 3600, 1)} h` : `${fixed(seconds / 86400, 1)} days`;
}

/** Print an amount of a budget unit, such as 1e13, "required_flops" -> "10.0 TFLOP". */
function formatAmount(amount, unit) {
  if (unit.endsWith("_flops")) return formatQuantity(amount, "FLOP") + (unit.startsWith("executed") ? " executed" : "");
  if (unit.endsWith("_seconds")) return formatSeconds(amount) + (unit.startsWith("device") ? " device time" : "");
  if (unit === "usd") return `${fixed(amount, 2)} USD`;
  return formatQuantity(amount, unit === "joules" ? "J" : "tokens");
}

/** Whole steps that an amount pays for beside what is paid first; never costing more, at least 0. */
function wholeSteps(amount, upfront, price) {
  const steps = Math.max(0, Math.floor((amount - upfront) / price));
  return steps > 0 && upfront + steps * price > amount ? steps - 1 : steps;
}

/** What steps cost: `first` each, and `later` each once a cached teacher has read all of the text. */
class StepCost {
  constructor(first, later, teacherSteps) {
    Object.assign(this, { first, later, teacherSteps });
  }

  cost(steps) {
    const taught = Math.min(steps, this.teacherSteps);
    return taught * this.first + (steps - taught) * this.later;
  }

  steps(amount, upfront) {
    const along = wholeSteps(amount, upfront, this.first);
    if (this.teacherSteps === Infinity) return along;
    const beyond = wholeSteps(amount, upfront + this.teacherSteps * (this.first - this.later), this.later);
    return beyond >= this.teacherSteps ? beyond : along;
  }

  times(factor) {
    return new StepCost(this.first * factor, this.later * factor, this.teacherSteps);
  }
}

/** Share of the teacher's pretraining that one schedule pays: 0, 1, or 1/K of "amortised:K". */
const chargeShare = (charge) => charge.startsWith("amortised:")
  ? 1 / Number(charge.slice("amortised:".length)) : Number(charge === "pretraining");

/** A price of the page's data: a number, or why there is none. */
function priceOf(arm, unit, charge) {
  const found = arm.prices[unit][charge === "none" ? "none" : "inference"];
  if (typeof found !== "number") throw new Error(found.error);
  return found;
}

function teacherCost(arm, unit, charge) {
  const share = chargeShare(charge);
  if (arm.teacher === null || share === 0 || unit === "tokens") return 0;
  const whole = arm.pretraining[unit];
  if (whole.error) throw new Error(whole.error.replace("'pretraining'", `'${charge}'`));
  return whole.amount === undefined ? share * whole.steps * whole.price : share * whole.amount;
}

/** Steps after which a cached teacher has read all of the text once; else Infinity. */
function teacherSteps(arm, unique, cached) {
  if (!cached) return Infinity;
  if (unique !== null) return Number(unique / BigInt(arm.seq_len)) / arm.batch_sequences;
  const wrong = "how much text there is, hence how often it is read, is not known yet";
  throw new Error(`${arm.name}: cached = true: ${wrong}; set corpus.unique_tokens`);
}

/** Steps of a warm-up: of the tokens that were asked for, or a share of so many steps. */
const warmupSteps = (data, arm, steps) => arm.warmup_tokens !== null
  ? Math.ceil(arm.warmup_tokens / arm.batch_tokens)
  : Math.ceil((arm.warmup_fraction ?? data.warmup_share) * steps);
const cooldownSteps = (arm, steps) =>
  arm.cools_down && steps ? Math.max(1, roundHalfEven(arm.cooldown_fraction * steps)) : 0;

/** What repeated text is worth in fresh text (arXiv 2305.16264, equation 5). */
function effectiveTokens(tokens, unique) {
  const once = Math.min(tokens, unique), repeats = once > 0 ? tokens / once - 1 : 0;
  return once * (1 + DATA_HALF_LIFE_PASSES * -Math.expm1(-repeats / DATA_HALF_LIFE_PASSES));
}

/** One amount in the unit of the match, from what was typed. */
function budgetOf(data, { budget, match, charge }) {
  const arm = data.arms.find((one) => match === `tokens:${one.name}`), wanted = data.matches[match] ?? "tokens";
  let { amount, unit } = parseAmount(budget, wanted);
  if (unit === "wall_seconds") [amount, unit] = [amount * data.devices, "device_seconds"];
  if (unit !== wanted) {
    const wrong = `it is in ${unit}, the match in ${wanted}`;
    throw new Error(`budget '${budget}' with match = '${match}': ${wrong}; change one of them`);
  }
  if (!arm) return { amount, unit };
  // One part in 1e9 keeps an arm's own tokens from being rounded down to one step less.
  const price = priceOf(arm, "required_flops", charge) / arm.batch_tokens;
  return { amount: amount * price * (1 + 1e-9), unit: "required_flops" };
}

/** One arm at one budget; what cannot be priced has an `error` in place of numbers. */
function scheduleOf(data, arm, { amount, unit }, settings) {
  const { charge } = settings, unique = settings.unique === null ? null : BigInt(settings.unique);
  const cached = settings.cached === "planned" ? arm.cached
    : settings.cached === "possible" && arm.why_not_cached === null;
  let teacher, price, taught;
  try {
    [teacher, taught] = [teacherCost(arm, unit, charge), teacherSteps(arm, unique, cached)];
    const first = priceOf(arm, unit, charge);
    price = new StepCost(first, cached ? priceOf(arm, unit, "none") : first, taught);
  } catch (error) {
    return { arm: arm.name, cached, error: error.message };
  }
  const fewest = arm.fewest_steps, trials = data.charged_trials, share = trials ? data.trial_share : null;
  const length = share === null ? price.times(trials + 1).steps(amount, teacher)
    : price.steps(teacher + share * (amount - teacher), teacher);
  const trialSteps = length >= fewest ? length : 0, tuning = trials * price.cost(trialSteps);
  const upfront = teacher + tuning, affordable = price.steps(amount, upfront), own = price.cost(fewest);
  const warmup = warmupSteps(data, arm, affordable), cooldown = cooldownSteps(arm, affordable);
  const feasible = affordable >= fewest && (trials === 0 || trialSteps > 0) && warmup + cooldown <= affordable;
  const steps = feasible ? affordable : 0, tokens = BigInt(steps) * BigInt(arm.batch_tokens);
  const unspent = feasible ? 1 - (upfront + price.cost(steps)) / amount : 1;
  const enough = share === null ? teacher + (trials + 1) * own : trialSteps ? upfront + own : teacher + own / share;
  let reason = `${arm.name} can take ${affordable} of at least ${fewest} steps; `;
  reason += `the smallest feasible budget is ${formatAmount(enough, unit)}`;
  if (trials) reason += `, with ${trials} trials of learning rates`;
  else if (teacher && amount > own) {
    const students = Math.ceil(teacher / (chargeShare(charge) * (amount - own)));
    reason += `, or share the teacher among ${students} students (amortised:${students})`;
  }
  // A cached teacher reads each sample once.
  const targets = roundHalfEven(Number(tokens) * arm.target_fraction), sequence = BigInt(arm.seq_len);
  let flops = Number(tokens) * arm.required_flops_per_position + targets * arm.required_flops_per_target_token;
  const once = cached ? (unique / sequence) * sequence : tokens;
  if (tokens > once) flops -= Number(tokens - once) * arm.teacher_forward_required_flops_per_token;
  const { inference, none } = arm.prices.device_seconds, isTimed = arm.timed && (!cached || arm.teacher_timed);
  // What the budget buys at either end of the step time's interval.
  const { seconds_per_step: seconds, seconds_per_step_interval: ends } = arm;
  const ranged = feasible && seconds && ends && ["device_seconds", "usd"].includes(unit);
  const boughtAt = (end) => price.times(end / seconds).steps(amount, upfront) * arm.batch_tokens;
  return {
    arm: arm.name, cached, error: null, feasible, steps, tokens,
    warmup: feasible ? warmup : 0, cooldown: feasible ? cooldown : 0, reason: feasible ? null : reason,
    passes: unique === null ? null : Number(tokens) / Number(unique),
    effective_tokens: unique === null ? null : effectiveTokens(Number(tokens), Number(unique)),
    teacher_charge: teacher, tuning_charge: tuning, unspent_fraction: unspent,
    beyond_tolerance: feasible && unspent > data.tolerance_fraction,
    tokens_interval: ranged ? [boughtAt(ends[1]), boughtAt(ends[0])] : null,
    required_flops: flops,
    device_seconds: isTimed ? new StepCost(inference, cached ? none : inference, taught).cost(steps) : null,
  };
}

/** Unique tokens that the first arm without a teacher would read so many times; null where it reads nothing. */
function uniqueForPasses(data, settings, passes) {
  const arm = data.arms.find((one) => one.teacher === null) ?? data.arms[0];
  const bare = { ...settings, unique: null, cached: "none" };
  const found = scheduleOf(data, arm, budgetOf(data, bare), bare);
  if (found.error !== null) throw new Error(found.error);
  const unique = Math.floor(Number(found.tokens) / passes);
  return unique >= 1 ? BigInt(unique) : null;
}

/**
 * Plan every arm under other settings.
 *
 * @param data what reporting/whatif.py wrote
 * @param settings budget (text), match, charge, unique (digits, BigInt or null), cached (planned, possible or none)
 * @returns {{amount: number, unit: string, arms: object[]}}
 */
function replan(data, settings) {
  const budget = budgetOf(data, settings);
  const arms = data.arms.map((arm) => scheduleOf(data, arm, budget, settings));
  // Where the study does not say how long, a share of the fewest tokens of all arms.
  const fewest = Math.min(...arms.filter((one) => one.feasible).map((one) => Number(one.tokens)));
  for (const [place, arm] of data.arms.entries()) {
    if (arm.warmup_tokens !== null || arm.warmup_fraction !== null || !arms[place].feasible) continue;
    arms[place].warmup = Math.ceil(data.warmup_share * fewest / arm.batch_tokens);
  }
  return { ...budget, arms };
}
