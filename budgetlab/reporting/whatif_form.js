// The form: reads the controls, plans again, and fills table, chart and the spoken summary.

const UNIT_WORDS = {
  required_flops: "required FLOPs, such as 16 TFLOP or 1.6e13",
  executed_flops: "executed FLOPs, such as 16 TFLOP executed",
  device_seconds: "time, such as 4 h (wall time) or 8 gpu-hours (device time)",
  joules: "energy, such as 2 kWh", usd: "US dollars, such as 10 usd", tokens: "tokens, such as 3.5M",
};
const SPEAK_AFTER_MS = 600; // not at every step of a slider that is dragged
const BAR_PITCH = 44;

const data = JSON.parse(document.getElementById("whatif-prices").textContent);
const field = (name) => document.getElementById(`whatif-${name}`);
const isOn = (one) => one.error === null && one.feasible;
let timer = null, middle = null;

const safe = (text) => text.replace(/[&<>"]/g, (letter) => `&#${letter.charCodeAt(0)};`);

function settings() {
  const [charge, students, text, amount] = ["charge", "students", "text", "amount"].map((name) => field(name).value);
  const shared = charge === "pretraining";
  if (shared && !/^[1-9]\d*$/.test(students.trim())) {
    throw new Error(`students per teacher '${students}': not a whole number above zero; give 1 or more`);
  }
  const chosen = {
    budget: field("budget").value, match: field("match").value, cached: field("cached").value,
    charge: shared && students.trim() !== "1" ? `amortised:${students.trim()}` : charge, unique: data.unique_tokens,
  };
  if (text === "tokens") chosen.unique = parseCount(amount);
  if (text !== "passes") return chosen;
  if (!(Number(amount) > 0 && Number.isFinite(Number(amount)))) {
    throw new Error(`passes '${amount}': not a number above zero; give one`);
  }
  chosen.unique = uniqueForPasses(data, chosen, Number(amount));
  if (chosen.unique !== null) return chosen;
  throw new Error(`${amount} passes: the arm that they are counted on reads less than that; raise the budget`);
}

function update() {
  const text = field("text").value;
  field("students").disabled = field("charge").value !== "pretraining";
  field("amount").disabled = text === "planned";
  field("unit").textContent = UNIT_WORDS[data.matches[field("match").value] ?? "tokens"];
  field("amount-label").textContent = text === "passes" ? "Passes" : "Unique tokens";
  let said, wrong = "";
  try {
    said = show(replan(data, settings()));
  } catch (error) {
    said = wrong = `${error.message}.`;
  }
  field("problem").textContent = wrong;
  field("problem").hidden = wrong === "";
  field("output").hidden = wrong !== "";
  clearTimeout(timer);
  timer = setTimeout(() => { field("spoken").textContent = said; }, SPEAK_AFTER_MS);
}

/** Fill table, chart and notes; return what is said of them. */
function show({ amount, unit, arms }) {
  const at = formatAmount(amount, unit), base = arms.find(isOn);
  const ranges = arms.some((one) => one.tokens_interval) ? "; in brackets, at the ends of the step time's interval" : "";
  field("caption").textContent = `Tokens per arm at ${at}, predicted from the profile's prices${ranges}`;
  fill("rows", arms, (one) => {
    const shown = cells(one, amount, base).map((cell) => `<td${cell === "n/a" ? ' class="na"' : ""}>${cell}</td>`);
    return `<tr><th scope="row" class="left">${safe(one.arm)}${one.cached ? " (cached)" : ""}</th>${shown.join("")}</tr>`;
  });
  const most = Math.max(1, ...arms.map((one) => Number(one.tokens ?? 0)));
  fill("chart", arms, (one, place) => `<g transform="translate(0 ${place * BAR_PITCH})">
    <text x="0" y="14">${safe(one.arm)}</text><text x="100%" y="14" text-anchor="end">${tokensOf(one, " tokens")}</text>
    <rect y="20" width="100%" height="14" class="room"/>
    <rect y="20" width="${100 * Number(one.tokens ?? 0) / most}%" height="14" class="bar"/></g>`);
  field("chart").setAttribute("height", arms.length * BAR_PITCH);
  fill("notes", arms.flatMap((one, place) => notes(one, data.arms[place])), (note) => `<li>${safe(note)}.</li>`);
  const said = `Tokens at ${at}, predicted: ${arms.map((one) => `${one.arm} ${tokensOf(one)}`).join(", ")}.`;
  field("chart").setAttribute("aria-label", said);
  return said;
}

function fill(name, values, write) {
  field(name).innerHTML = values.map(write).join("");
}

function tokensOf(one, unit = "") {
  if (!isOn(one)) return one.error === null ? "infeasible" : "n/a";
  return formatQuantity(Number(one.tokens)) + unit;
}

/** One row: tokens, ratio, steps, passes, fresh tokens, teacher's cost, unspent, FLOPs, device time. */
function cells(one, budget, base) {
  if (one.error !== null) return Array(9).fill("n/a");
  const percent = (value) => fixed(100 * value, 2), charged = percent(one.teacher_charge / budget);
  if (!one.feasible) return ["infeasible", ...Array(4).fill("n/a"), charged, ...Array(3).fill("n/a")];
  const ends = one.tokens_interval?.map((end) => formatQuantity(end)).join(" to ");
  return [
    formatQuantity(Number(one.tokens)) + (ends ? ` [${ends}]` : ""), fixed(Number(one.tokens) / Number(base.tokens), 2),
    one.steps.toLocaleString("en"), one.passes === null ? "n/a" : fixed(one.passes, 2),
    formatQuantity(one.effective_tokens), charged, percent(one.unspent_fraction),
    formatQuantity(one.required_flops, "FLOP"), formatSeconds(one.device_seconds),
  ];
}

function notes(one, arm) {
  const lines = [];
  if (one.error !== null) lines.push(`n/a: ${one.error}`);
  else if (!one.feasible) lines.push(`infeasible: ${one.reason}`);
  else if (one.beyond_tolerance) {
    const rest = `${(100 * one.unspent_fraction).toPrecision(2)} % unspent, more than the study's tolerance`;
    lines.push(`${one.arm}: ${one.steps} whole steps leave ${rest}; a plan with it is refused`);
  }
  if (one.cached && arm.cached_needs.length) {
    lines.push(`${one.arm} with a cached teacher: the study has to set ${arm.cached_needs.join(" and ")}`);
  }
  return lines;
}

/** Put the slider in its middle, at the budget that was typed. */
function centre() {
  const found = NUMBER.exec(field("budget").value);
  middle = found && [Number(found[1].replaceAll("_", "")), field("budget").value.trim().slice(found[1].length)];
  field("slider").value = 0;
}

/** Start from the planned budget in the chosen currency. */
function translate() {
  field("budget").value = data.budgets[field("match").value] ?? field("budget").value;
  centre();
}

field("form").addEventListener("submit", (event) => event.preventDefault());
field("reset").addEventListener("click", () => {
  field("form").reset();
  translate();
  update();
});
field("slider").addEventListener("input", () => {
  const [number, unit] = middle ?? [0, ""];
  field("budget").value = Number((number * 10 ** Number(field("slider").value)).toPrecision(6)) + unit;
});
field("budget").addEventListener("change", centre);
field("match").addEventListener("change", translate);
field("text").addEventListener("change", () => {
  field("amount").value = field("text").value === "passes" ? "4" : data.unique_tokens ?? "1M";
});
// What is typed or dragged counts at once; what is chosen, after the handlers above have seen it.
field("form").addEventListener("input", (event) => { if (event.target.tagName !== "SELECT") update(); });
field("form").addEventListener("change", update);
field("form").hidden = false;
translate();
update();
