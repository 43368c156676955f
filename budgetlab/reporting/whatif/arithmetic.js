// The planner's arithmetic, for the page: budget -> whole steps, as planner/prices.py and planner/match.py have it.
//
// Every product, quotient and floor is taken in the order in which Python takes it, so that steps are equal and not
// merely close; tests/reporting/test_whatif.py holds the two against each other. Tokens are BigInt, because a large
// budget buys more of them than a double can count. Nothing here knows of a document.
"use strict";

const DATA_HALF_LIFE_PASSES = 15.387756; // R_D* of planner/prices.py
const MOST_FEWEST = 10000;

/** Python's round(): halves go to the even neighbour. */
function roundHalfEven(value) {
  const floor = Math.floor(value), rest = value - floor;
  return rest > 0.5 || (rest === 0.5 && floor % 2 !== 0) ? floor + 1 : floor;
}

/** Whole steps that an amount pays for after the bill; never costing more, at least 0. */
function wholeSteps(amount, bill, price) {
  const steps = Math.max(0, Math.floor((amount - bill) / price));
  return steps > 0 && bill + steps * price > amount ? steps - 1 : steps;
}

/** What steps cost: `first` each, and `later` each once a teacher whose answers are kept has read all of the text. */
class Tariff {
  constructor(first, later, taughtSteps) {
    Object.assign(this, { first, later, taughtSteps });
  }

  cost(steps) {
    const taught = Math.min(steps, this.taughtSteps);
    return taught * this.first + (steps - taught) * this.later;
  }

  steps(amount, bill) {
    const along = wholeSteps(amount, bill, this.first);
    if (this.taughtSteps === Infinity) return along;
    const beyond = wholeSteps(amount, bill + this.taughtSteps * (this.first - this.later), this.later);
    return beyond >= this.taughtSteps ? beyond : along;
  }

  times(factor) {
    return new Tariff(this.first * factor, this.later * factor, this.taughtSteps);
  }
}

/** Share of the teacher's pretraining that one schedule is billed: 0, 1, or 1/K of "amortised:K". */
function chargeShare(charge) {
  if (charge === "none" || charge === "inference") return 0;
  if (charge === "pretraining") return 1;
  const found = /^amortised:([1-9]\d*)$/.exec(charge);
  if (!found) throw new Error(`charge '${charge}': no charge of that name`);
  return 1 / Number(found[1]);
}

/** A price of the page's data: a number, or why there is none. */
function priceOf(arm, unit, charge) {
  const found = arm.prices[unit][charge === "none" ? "none" : "inference"];
  if (typeof found !== "number") throw new Error(found.error);
  return found;
}

function teacherBill(arm, unit, charge) {
  const share = chargeShare(charge);
  if (arm.teacher === null || share === 0 || unit === "tokens") return 0;
  const bill = arm.bills[unit];
  if (bill.error) throw new Error(bill.error.replace("'pretraining'", `'${charge}'`));
  return bill.amount === undefined ? share * bill.steps * bill.price : share * bill.amount;
}

/** Steps after which the teacher has read all of the text once, where its answers are kept; else Infinity. */
function taughtSteps(arm, unique, cached) {
  if (!cached) return Infinity;
  if (unique === null) {
    const wrong = "how much text there is, hence how often it is read, is not known yet";
    throw new Error(`${arm.name}: cached = true: ${wrong}; set corpus.unique_tokens`);
  }
  return Number(unique / BigInt(arm.seq_len)) / arm.batch_sequences;
}

/** Steps of a warm-up: of the tokens that were asked for, or a share of so many steps. */
const warmupSteps = (data, arm, steps) => arm.warmup_tokens !== null
  ? Math.ceil(arm.warmup_tokens / arm.batch_tokens)
  : Math.ceil((arm.warmup_fraction ?? data.warmup_share) * steps);
const cooldownSteps = (arm, steps) =>
  arm.cools_down && steps ? Math.max(1, roundHalfEven(arm.cooldown_fraction * steps)) : 0;

/** Fewest steps that hold a warm-up and a cooldown. */
function fewestSteps(data, arm) {
  const stays = 1 - (arm.cools_down ? arm.cooldown_fraction : 0);
  const least = arm.warmup_tokens === null ? 2 : Math.max(2, Math.floor((warmupSteps(data, arm, 0) - 0.5) / stays));
  for (let n = least; n < least + MOST_FEWEST; n++)
    if (warmupSteps(data, arm, n) + cooldownSteps(arm, n) <= n) return n;
  return least + MOST_FEWEST;
}

/** What repeated text is worth in fresh text (arXiv 2305.16264, equation 5). */
function effectiveTokens(tokens, unique) {
  const once = Math.min(tokens, unique), repeats = once > 0 ? tokens / once - 1 : 0;
  return once * (1 + DATA_HALF_LIFE_PASSES * -Math.expm1(-repeats / DATA_HALF_LIFE_PASSES));
}

/** Whether an arm's teacher is kept: as planned, wherever it can be, or nowhere. */
function isCached(arm, setting) {
  return setting === "planned" ? arm.cached : setting === "possible" && arm.why_not_cached === null;
}

/** One amount in the unit of the match, from what was typed. */
function budgetOf(data, { budget, match, charge }) {
  let wanted = data.matches[match], price = 1;
  if (match.startsWith("tokens:")) {
    const arm = data.arms.find((one) => one.name === match.slice("tokens:".length));
    if (!arm) throw new Error(`match = '${match}': no arm of that name`);
    [wanted, price] = ["tokens", priceOf(arm, "required_flops", charge) / arm.batch_tokens];
  }
  if (wanted === undefined) throw new Error(`match '${match}': no match of that name`);
  let { amount, unit } = parseAmount(budget, wanted);
  if (unit === "wall_seconds") [amount, unit] = [amount * data.devices, "device_seconds"];
  if (unit !== wanted) {
    const wrong = `it is in ${unit}, the match in ${wanted}`;
    throw new Error(`budget '${budget}' with match = '${match}': ${wrong}; change one of them`);
  }
  // One part in 1e9 keeps an arm's own tokens from being rounded down to one step less.
  return match.startsWith("tokens:")
    ? { amount: amount * price * (1 + 1e-9), unit: "required_flops" }
    : { amount, unit };
}

/** One arm at one budget; what cannot be priced has an `error` in place of numbers. */
function scheduleOf(data, arm, { amount, unit }, settings) {
  const { charge } = settings, unique = settings.unique === null ? null : BigInt(settings.unique);
  const cached = isCached(arm, settings.cached);
  let teacher, price;
  try {
    teacher = teacherBill(arm, unit, charge);
    const taught = taughtSteps(arm, unique, cached), first = priceOf(arm, unit, charge);
    price = new Tariff(first, cached ? priceOf(arm, unit, "none") : first, taught);
  } catch (error) {
    return { arm: arm.name, cached, error: error.message };
  }
  const fewest = fewestSteps(data, arm), trials = data.charged_trials, share = trials ? data.trial_share : null;
  const length = share === null ? price.times(trials + 1).steps(amount, teacher)
    : price.steps(teacher + share * (amount - teacher), teacher);
  const trialSteps = length >= fewest ? length : 0;
  const tuning = trials * price.cost(trialSteps), bill = teacher + tuning;
  const affordable = price.steps(amount, bill);
  let warmup = warmupSteps(data, arm, affordable), cooldown = cooldownSteps(arm, affordable);
  const feasible = affordable >= fewest && (trials === 0 || trialSteps > 0) && warmup + cooldown <= affordable;
  if (!feasible) warmup = cooldown = 0;
  const steps = feasible ? affordable : 0, tokens = BigInt(steps) * BigInt(arm.batch_tokens);
  const unspent = feasible ? 1 - (bill + price.cost(steps)) / amount : 1;
  const own = price.cost(fewest);
  const enough = share === null ? teacher + (trials + 1) * own : trialSteps ? bill + own : teacher + own / share;
  return {
    arm: arm.name, cached, error: null, feasible, steps, tokens, warmup, cooldown,
    reason: feasible ? null
      : whyInfeasible(arm, { teacher, price, fewest, trials, enough }, { amount, unit }, affordable, charge),
    smallest_feasible: enough,
    passes: unique === null ? null : Number(tokens) / Number(unique),
    effective_tokens: unique === null ? null : effectiveTokens(Number(tokens), Number(unique)),
    teacher_charge: teacher, tuning_charge: tuning, unspent_fraction: unspent,
    beyond_tolerance: feasible && unspent > data.tolerance_fraction,
    tokens_interval: feasible ? tokensInterval(arm, price, amount, unit, bill) : null,
    required_flops: requiredFlops(arm, tokens, cached ? unique : null),
    device_seconds: deviceSeconds(arm, steps, price.taughtSteps),
  };
}

function whyInfeasible(arm, { teacher, price, fewest, trials, enough }, { amount, unit }, steps, charge) {
  const own = price.cost(fewest);
  let reason = `${arm.name} can take ${steps} of at least ${fewest} steps; the smallest feasible budget is `;
  reason += formatAmount(enough, unit);
  if (trials) reason += `, with ${trials} trials of learning rates`;
  else if (teacher && amount > own) {
    const students = Math.ceil(teacher / (chargeShare(charge) * (amount - own)));
    reason += `, or share the teacher among ${students} students (amortised:${students})`;
  }
  return reason;
}

/** What a budget of time or money buys at either end of the step time's interval; null for other budgets. */
function tokensInterval(arm, price, amount, unit, bill) {
  const { seconds_per_step: seconds, seconds_per_step_interval: ends } = arm;
  if (!["device_seconds", "usd"].includes(unit) || !seconds || !ends) return null;
  const at = (end) => price.times(end / seconds).steps(amount, bill) * arm.batch_tokens;
  return [at(ends[1]), at(ends[0])];
}

/** Required FLOPs of training; `unique` is given where the teacher reads each sample once. */
function requiredFlops(arm, tokens, unique) {
  const targets = roundHalfEven(Number(tokens) * arm.target_fraction);
  const flops = Number(tokens) * arm.required_flops_per_position + targets * arm.required_flops_per_target_token;
  if (unique === null) return flops;
  const sequence = BigInt(arm.seq_len), once = (unique / sequence) * sequence;
  const untaught = tokens > once ? tokens - once : 0n;
  return flops - Number(untaught) * arm.teacher_forward_required_flops_per_token;
}

/** Device time of so many steps, predicted from the profile; null where it was not timed. */
function deviceSeconds(arm, steps, taught) {
  if (!arm.timed || (taught !== Infinity && !arm.teacher_timed)) return null;
  const { inference, none } = arm.prices.device_seconds;
  return new Tariff(inference, taught === Infinity ? inference : none, taught).cost(steps);
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
 * @param data what reporting/whatif/prices.py wrote
 * @param settings budget (text), match, charge, unique (digits, BigInt or null), cached (planned, possible or none)
 * @returns {{amount: number, unit: string, arms: object[]}}
 */
function replan(data, settings) {
  const budget = budgetOf(data, settings);
  const arms = data.arms.map((arm) => scheduleOf(data, arm, budget, settings));
  // Where the study does not say how long, a share of the fewest tokens of all arms.
  const fewest = Math.min(...arms.filter((one) => one.feasible).map((one) => Number(one.tokens)));
  data.arms.forEach((arm, index) => {
    if (arm.warmup_tokens !== null || arm.warmup_fraction !== null || !arms[index].feasible) return;
    arms[index].warmup = Math.ceil(data.warmup_share * fewest / arm.batch_tokens);
  });
  return { ...budget, arms };
}
