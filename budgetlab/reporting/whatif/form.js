// The what-if planner's form: reads the controls, plans again, and fills table, chart and the spoken summary.
"use strict";

const UNIT_WORDS = {
  required_flops: "required FLOPs, such as 16 TFLOP or 1.6e13",
  executed_flops: "executed FLOPs, such as 16 TFLOP executed",
  device_seconds: "time, such as 4 h (wall time) or 8 gpu-hours (device time)",
  joules: "energy, such as 2 kWh", usd: "US dollars, such as 10 usd", tokens: "tokens, such as 3.5M",
};
const SPEAK_AFTER_MS = 600;

function element(name, attributes = {}, text = null, namespace = document.documentElement.namespaceURI) {
  const made = document.createElementNS(namespace, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** How an amount is written in the budget's field: [what it is divided by, what follows the number]. */
function written(amount, unit) {
  const [prefix, scale] = SCALES.find((found) => amount >= found[1]) ?? ["", 1];
  if (unit === "required_flops") return [scale, ` ${prefix}FLOP`];
  if (unit === "tokens") return amount < 1e6 ? [1, " tokens"] : amount < 1e9 ? [1e6, "M tokens"] : [1e9, "B tokens"];
  if (unit !== "device_seconds") return [1, { executed_flops: " executed flops", joules: " J" }[unit] ?? ` ${unit}`];
  return amount < 60 ? [1, " device_seconds"] : amount < 3600 ? [60, " device-min"] : [3600, " device-hours"];
}

/** Text that `parseAmount` reads back as that amount, or, in six digits, as no less: no step is lost to rounding. */
function typed(amount, unit) {
  const [scale, name] = written(amount, unit), mantissa = amount / scale, whole = mantissa + name;
  if (whole.length < 18 && parseAmount(whole, unit).amount === amount) return whole;
  const last = 10 ** (Math.floor(Math.log10(mantissa)) - 5), shown = Number(mantissa.toPrecision(6));
  return (shown < mantissa ? Number((shown + last).toPrecision(6)) : shown) + name;
}

function start(root) {
  const data = JSON.parse(root.querySelector("#whatif-prices").textContent);
  const field = (name) => root.querySelector(`#whatif-${name}`);
  const form = field("form"), output = field("output"), problem = field("problem"), spoken = field("spoken");
  const unitOf = (match) => data.matches[match] ?? "tokens";
  let timer = null, middle = data.budget.amount;

  function settings() {
    const charge = field("charge").value, students = field("students").value.trim();
    if (charge === "pretraining" && !/^[1-9]\d*$/.test(students)) {
      throw new Error(`students per teacher '${students}': not a whole number above zero; give 1 or more`);
    }
    const chosen = {
      budget: field("budget").value, match: field("match").value, cached: field("cached").value,
      charge: charge === "pretraining" && students !== "1" ? `amortised:${students}` : charge, unique: null,
    };
    const text = field("text").value, amount = field("amount").value;
    if (text === "planned") return { ...chosen, unique: data.unique_tokens };
    if (text === "tokens") return { ...chosen, unique: parseCount(amount) };
    const passes = Number(amount);
    if (!(passes > 0 && Number.isFinite(passes))) {
      throw new Error(`passes '${amount}': not a number above zero; give one`);
    }
    const unique = uniqueForPasses(data, chosen, passes);
    if (unique === null) {
      throw new Error(`${amount} passes: the arm that they are counted on reads less than that; raise the budget`);
    }
    return { ...chosen, unique };
  }

  /** The planned budget in another currency: what the first feasible arm of the plan spends on its tokens there. */
  function translate(match) {
    const { amount, unit } = data.budget, charge = data.charge;
    if (match === data.match && !match.startsWith("tokens:")) return typed(amount, unit);
    if (match === data.match) {
      const arm = data.arms.find((one) => `tokens:${one.name}` === match);
      return typed(amount / (priceOf(arm, unit, charge) / arm.batch_tokens) / (1 + 1e-9), "tokens");
    }
    const planned = { charge, unique: data.unique_tokens, cached: "none" };
    for (const arm of data.arms) {
      const found = scheduleOf(data, arm, data.budget, planned);
      if (found.error !== null || !found.feasible) continue;
      try {
        const price = match.startsWith("tokens:") ? arm.batch_tokens : priceOf(arm, unitOf(match), charge);
        return typed(found.steps * price * (1 + 1e-9), unitOf(match));
      } catch {
        continue; // Not priced there: the next arm may be.
      }
    }
    return null;
  }

  /** Put the slider in its middle, at the budget that was typed. */
  function centre() {
    try {
      middle = parseAmount(field("budget").value, unitOf(field("match").value)).amount;
      field("slider").value = 0;
    } catch {
      // The text is explained where it is planned with.
    }
  }

  function update() {
    const charged = field("charge").value === "pretraining", text = field("text").value;
    field("students").disabled = !charged;
    field("amount").disabled = text === "planned";
    field("unit").textContent = UNIT_WORDS[unitOf(field("match").value)];
    field("amount-label").textContent = text === "passes" ? "Passes" : "Unique tokens";
    let made;
    try {
      made = replan(data, settings());
    } catch (error) {
      problem.textContent = `${error.message}.`;
      problem.hidden = false;
      output.hidden = true;
      speak(problem.textContent);
      return;
    }
    problem.hidden = true;
    output.hidden = false;
    table(made);
    chart(made);
    notes(made);
    speak(summary(made));
  }

  /** Tell a screen reader, once nothing has changed for a while: not at every step of a slider that is dragged. */
  function speak(text) {
    clearTimeout(timer);
    timer = setTimeout(() => { spoken.textContent = text; }, SPEAK_AFTER_MS);
  }

  function summary(made) {
    const told = made.arms.map((one) => one.error !== null ? `${one.arm} n/a`
      : one.feasible ? `${one.arm} ${formatQuantity(Number(one.tokens))}` : `${one.arm} infeasible`);
    return `Tokens at ${formatAmount(made.amount, made.unit)}, predicted: ${told.join(", ")}.`;
  }

  function table(made) {
    const base = made.arms.find((one) => one.error === null && one.feasible);
    const told = "; in brackets, at the ends of the step time's interval";
    const ranges = made.arms.some((one) => one.tokens_interval) ? told : "";
    const at = formatAmount(made.amount, made.unit);
    field("caption").textContent = `Tokens per arm at ${at}, predicted from the profile's prices${ranges}`;
    field("rows").replaceChildren(...made.arms.map((one) => {
      const row = element("tr");
      row.append(element("th", { scope: "row", class: "left" }, one.arm + (one.cached ? " (cached)" : "")));
      const shown = cells(one, made.amount, base);
      row.append(...shown.map((cell) => element("td", cell === "n/a" ? { class: "na" } : {}, cell)));
      return row;
    }));
  }

  /** One row: tokens, ratio, steps, passes, fresh tokens, teacher's bill, unspent, FLOPs, device time. */
  function cells(one, budget, base) {
    if (one.error !== null) return Array(9).fill("n/a");
    const percent = (value) => fixed(100 * value, 2), bill = percent(one.teacher_charge / budget);
    if (!one.feasible) return ["infeasible", ...Array(4).fill("n/a"), bill, ...Array(3).fill("n/a")];
    const tokens = formatQuantity(Number(one.tokens));
    const ends = one.tokens_interval && one.tokens_interval.map((end) => formatQuantity(end)).join(" to ");
    return [
      ends ? `${tokens} [${ends}]` : tokens, fixed(Number(one.tokens) / Number(base.tokens), 2),
      one.steps.toLocaleString("en"), one.passes === null ? "n/a" : fixed(one.passes, 2),
      formatQuantity(one.effective_tokens), bill, percent(one.unspent_fraction),
      formatQuantity(one.required_flops, "FLOP"), formatSeconds(one.device_seconds),
    ];
  }

  /** A bar an arm, in units of the screen, so that its words are as large as all others. */
  function chart(made) {
    const drawing = field("chart"), width = Math.max(240, drawing.parentElement.clientWidth), pitch = 44;
    const most = Math.max(1, ...made.arms.map((one) => one.error === null ? Number(one.tokens) : 0));
    drawing.setAttribute("viewBox", `0 0 ${width} ${made.arms.length * pitch}`);
    drawing.setAttribute("aria-label", summary(made));
    const shape = (name, attributes, text) => element(name, attributes, text, drawing.namespaceURI);
    drawing.replaceChildren(...made.arms.map((one, place) => {
      const group = shape("g", { transform: `translate(0 ${place * pitch})` });
      const on = one.error === null && one.feasible, length = on ? Number(one.tokens) / most * width : 0;
      const told = on ? formatQuantity(Number(one.tokens), "tokens") : one.error === null ? "infeasible" : "n/a";
      group.append(
        shape("text", { x: 0, y: 14 }, one.arm),
        shape("text", { x: width, y: 14, "text-anchor": "end" }, told),
        shape("rect", { x: 0, y: 20, width, height: 14, class: "room" }),
        shape("rect", { x: 0, y: 20, width: length, height: 14, class: "bar" }),
      );
      return group;
    }));
  }

  function notes(made) {
    const lines = [];
    for (const [place, one] of made.arms.entries()) {
      const arm = data.arms[place];
      if (one.error !== null) lines.push(`n/a: ${one.error}`);
      else if (!one.feasible) lines.push(`infeasible: ${one.reason}`);
      else if (one.beyond_tolerance) {
        const rest = `${(100 * one.unspent_fraction).toPrecision(2)} % unspent, more than the study's tolerance`;
        lines.push(`${one.arm}: ${one.steps} whole steps leave ${rest}; a plan with it is refused`);
      }
      if (one.cached && arm.cached_needs.length) {
        lines.push(`${one.arm} with a cached teacher: the study has to set ${arm.cached_needs.join(" and ")}`);
      }
    }
    field("notes").replaceChildren(...lines.map((line) => element("li", {}, `${line}.`)));
  }

  function initialise() {
    field("budget").value = translate(field("match").value);
    centre();
    update();
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  field("reset").addEventListener("click", () => {
    form.reset();
    initialise();
  });
  field("slider").addEventListener("input", () => {
    const unit = unitOf(field("match").value);
    field("budget").value = typed(middle * 10 ** Number(field("slider").value), unit);
    update();
  });
  field("budget").addEventListener("change", centre);
  field("match").addEventListener("change", () => {
    const text = translate(field("match").value);
    if (text !== null) field("budget").value = text;
    centre();
  });
  field("text").addEventListener("change", () => {
    const passes = field("text").value === "passes";
    field("amount").value = passes ? "4" : data.unique_tokens ?? "1M";
  });
  // What is typed or dragged counts at once; what is chosen, after the handlers above have seen it.
  form.addEventListener("input", (event) => { if (event.target.tagName !== "SELECT") update(); });
  form.addEventListener("change", update);
  window.addEventListener("resize", () => { if (!output.hidden) update(); });
  form.hidden = false;
  initialise();
}

start(document.getElementById("whatif"));
