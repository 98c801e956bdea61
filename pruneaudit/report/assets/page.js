// The page: what is chosen, and what each section shows of it.

const MARKS = {
  fail: ["✗", "required and broken"],
  incomplete: ["?", "cells are missing"],
  waived: ["w", "broken, and waived by the study"],
  none: ["·", "not measured"],
  no: ["–", "does not hold, not required"],
  pass: ["✓", "holds"],
};
const WORST_FIRST = Object.keys(MARKS);
const THEMES = ["auto", "light", "dark"];
const ALL = "all";
const NO_TABLE = { header: [], rows: [] };

const chosen = { group: 0, protocol: "", ratio: ALL, arity: 2, x: "speedup", hidden: new Set() };
let theme = "auto";
let data;

async function start() {
  const script = el("script");
  script.textContent = await unpacked("plotly");
  document.head.append(script);
  data = JSON.parse(await unpacked("data"));
  for (const name of ["cells", "runs", "curves", "findings", "verdicts"]) data[name] = rowsOf(data[name]);
  byId("controls").hidden = false;
  listen();
  paint();
  choose(byId("workload"), data.groups.map((group, number) => [number, group.title]), 0);
  if (data.groups.length) chooseGroup(0);
  else outdate();
}

function listen() {
  byId("workload").addEventListener("change", (event) => chooseGroup(Number(event.target.value)));
  byId("protocol").addEventListener("change", (event) => { chosen.protocol = event.target.value; outdate(); });
  byId("ratio").addEventListener("change", (event) => { chosen.ratio = event.target.value === ALL ? ALL : Number(event.target.value); outdate(); });
  byId("theme").addEventListener("click", () => { theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]; paint(); outdate(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { paint(); outdate(); });
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  pressed("[data-audit]", (button) => { chosen.arity = Number(button.dataset.audit); outdate("audit"); });
  pressed("[data-x]", (button) => { chosen.x = button.dataset.x; outdate("accuracy"); });
  byId("broken-only").addEventListener("change", () => outdate("audit"));
  byId("all-protocols").addEventListener("change", () => outdate("accuracy"));
  const seen = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      visible[entry.isIntersecting ? "add" : "delete"](entry.target.id);
      if (entry.isIntersecting) draw(entry.target.id);
    }
  }, { rootMargin: "300px" });
  drawn().forEach((id) => seen.observe(byId(id)));
}

/** Everything for paper, before it is laid out there: light, unfolded, drawn, and as wide as a page. Afterwards as it was. */
function print(on) {
  if (!data) return;
  document.documentElement.classList.toggle("printing", on);
  for (const details of document.querySelectorAll(on ? "details:not([open])" : "details[data-folded]")) {
    details.toggleAttribute("data-folded", on);
    details.open = on;
  }
  paint(on ? "light" : undefined);
  outdate();
  if (on) {
    const { protocol, ratio } = chosen;
    const shown = [data.groups[chosen.group]?.title, protocol, ratio === ALL ? "all ratios" : `ratio ${ratio}`];
    byId("shown").textContent = data.groups.length ? `Shown: ${shown.join(", ")}.` : "";
    drawn().forEach(draw);
  }
}

/** Buttons of which one is pressed. */
function pressed(selector, act) {
  const buttons = [...document.querySelectorAll(selector)];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      buttons.forEach((other) => other.setAttribute("aria-pressed", String(other === button)));
      act(button);
    });
  }
}

function paint(forced) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = forced ?? (theme === "auto" ? (dark ? "dark" : "light") : theme);
  byId("theme").textContent = `theme: ${theme}`;
  if (data) chips();
}

function choose(select, options, value) {
  select.replaceChildren(...options.map(([key, text]) => el("option", { value: key }, text)));
  select.value = value;
}

function chooseGroup(number) {
  chosen.group = number;
  const cells = data.cells.filter((cell) => cell.g === number);
  const names = unique(cells.map((cell) => cell.protocol)).sort();
  if (!names.includes(chosen.protocol)) chosen.protocol = names.includes(data.usual) ? data.usual : names[0];
  const ratios = unique(cells.map((cell) => cell.ratio)).sort((left, right) => left - right);
  if (!ratios.includes(chosen.ratio)) chosen.ratio = ALL;
  choose(byId("protocol"), names.map((name) => [name, name]), chosen.protocol);
  choose(byId("ratio"), [[ALL, "all"], ...ratios.map((ratio) => [ratio, String(ratio)])], chosen.ratio);
  // Of arms that nobody compared there is more to see than an empty table.
  const compared = data.findings.some((finding) => finding.g === number && finding.arms.length === 2);
  if (!compared) document.querySelector("[data-audit='1']").click();
  speak();
  chips();
  outdate();
}

/** Headings and explanations name the metric of the chosen workload. */
function speak() {
  const metric = metricOf(data.groups[chosen.group]);
  for (const place of document.querySelectorAll("[data-metric]")) {
    const text = metric[place.dataset.metric];
    place.textContent = place.dataset.capital === undefined ? text : text[0].toUpperCase() + text.slice(1);
  }
}

function chips() {
  const names = unique(data.cells.filter((cell) => cell.g === chosen.group).map((cell) => cell.method));
  // On paper they are the legend of plots that have none.
  byId("methods").classList.toggle("legend-of-all", names.length > LEGEND_NAMES);
  const set = (hidden) => { chosen.hidden = new Set(hidden); chips(); outdate(); };
  const place = byId("methods");
  // Drawn anew at each press: the focus goes with the name.
  const focused = place.contains(document.activeElement) ? document.activeElement.dataset.name : null;
  place.replaceChildren(
    ...names.sort().map((name) => {
      const button = el("button", { type: "button", "data-name": name, "aria-pressed": String(!chosen.hidden.has(name)), title: "Double click: only this one",
        onclick: () => set(chosen.hidden.has(name) ? [...chosen.hidden].filter((other) => other !== name) : [...chosen.hidden, name]) }, el("i"), name);
      button.style.setProperty("--c", colourOf(data.methods[name]));
      button.addEventListener("dblclick", () => set(names.filter((other) => other !== name)));
      return button;
    }),
    el("button", { type: "button", class: "more", "data-name": "", onclick: () => set([]) }, "all"),
    el("button", { type: "button", class: "more", "data-name": "-", onclick: () => set(names) }, "none"),
  );
  if (focused !== null) [...place.children].find((button) => button.dataset.name === focused)?.focus();
}

// Sections are drawn when they come into view: a report of thousands of cells opens at once.
const visible = new Set();
const stale = new Set();
const SECTIONS = {
  verdicts: drawComparisons,
  audit: drawAudit,
  accuracy: () => { drawAccuracy(); drawMeans(); },
  rates: drawRates,
  curves: drawCurves,
  budget: drawBudget,
  trainability: drawTrainability,
  noise: drawNoise,
  strictest: drawStrictest,
  published: drawPublished,
  excluded: drawExcluded,
  cells: drawCells,
  provenance: drawRuns,
};

/** Sections that are there: most reports are of one arithmetic, and have no noise floor. */
function drawn() {
  return Object.keys(SECTIONS).filter(byId);
}

function outdate(only) {
  (only ? [only] : drawn()).forEach((id) => { stale.add(id); if (visible.has(id)) draw(id); });
}

function draw(id) {
  if (!stale.delete(id)) return;
  SECTIONS[id]();
}

/** Measured cells of the chosen workload whose methods are shown; of the chosen protocol and ratio unless told. */
function measured({ protocol = chosen.protocol, ratio = chosen.ratio } = {}) {
  return data.cells.filter((cell) => cell.g === chosen.group && cell.status === "ok" && !chosen.hidden.has(cell.method)
    && cell.protocol === protocol && (ratio === ALL || cell.ratio === ratio));
}

/** A plot for each ratio. */
function byRatio(place, rows, reason, one) {
  clearPlots(place, rows.length ? "" : reason);
  for (const [ratio, members] of [...grouped(rows, (row) => row.ratio)].sort(([left], [right]) => left - right)) {
    one(`${chosen.protocol}, ratio ${ratio}`, members);
  }
}

function drawComparisons() {
  // Where there is none at all the page says so already.
  if (!data.verdicts.length) return;
  const rows = data.verdicts.filter((row) => row.g === chosen.group);
  const { decimals } = metricOf(data.groups[chosen.group]);
  const columns = [
    { name: "protocol", value: (row) => row.protocol },
    { name: "ratio", value: (row) => row.ratio, number: true },
    { name: "first", value: (row) => row.arms[0] },
    { name: "second", value: (row) => (row.against === "the baseline" ? "its baseline" : row.arms[1]) },
    { name: "verdict", value: (row) => row.verdict, whole: true },
    { name: "difference", value: (row) => row.mean, show: (row) => signed(row.mean, decimals), number: true },
    { name: "95 % interval", value: (row) => row.low, show: (row) => (row.low === null ? "" : `${signed(row.low, decimals)} to ${signed(row.high, decimals)}`), number: true },
    { name: "p", value: (row) => row.p, show: (row) => short(row.p), number: true },
    { name: "seeds", value: (row) => row.seeds, number: true },
    { name: "because of", value: (row) => [...row.forbidden_by, ...row.waived.map((rule) => `${rule} waived`)].join(" "), show: reasons },
    { name: "not controlled", value: (row) => row.uncontrolled.join(" ") },
  ];
  sheet(byId("comparisons"), columns, rows, { empty: "No comparison on this workload.", label: "comparisons" });
}

/** Why a comparison does not count: of many rules the first ones, and how many more. */
function reasons(row) {
  const { waived } = row;
  // Where cells are missing, rules that cannot be judged for that reason only repeat it.
  const rules = [...row.forbidden_by].sort((left, right) => (right === "F607") - (left === "F607"));
  const named = rules.length <= 4 ? rules : [...rules.slice(0, 2), `and ${rules.length - 2} more rules`];
  return el("span", { title: rules.join(" ") }, [...named, ...waived.map((rule) => `${rule} waived`)].join(" "));
}

function markOf(finding) {
  if (finding.verdict === "fail") return finding.waived ? "waived" : finding.required ? "fail" : "no";
  return finding.verdict === "not measured" ? "none" : finding.verdict;
}

function drawAudit() {
  const found = data.findings.filter((finding) => finding.g === chosen.group && finding.protocol === chosen.protocol
    && finding.arms.length === chosen.arity && (chosen.ratio === ALL || finding.ratio === chosen.ratio));
  const worst = (findings) => WORST_FIRST[Math.min(...findings.map((finding) => WORST_FIRST.indexOf(markOf(finding))))];
  const rows = [...grouped(found, (finding) => finding.arms.join("\u0000")).values()].map((findings) => ({
    name: findings[0].arms.join(" vs "),
    rules: new Map([...grouped(findings, (finding) => finding.rule)].map(([rule, members]) => [rule, { members, mark: worst(members) }])),
  }));
  const only = byId("broken-only").checked;
  const rules = unique(found.map((finding) => finding.rule)).sort()
    .filter((rule) => !only || rows.some((row) => row.rules.has(rule) && row.rules.get(rule).mark !== "pass"));
  const columns = rules.map((rule) => ({
    name: rule,
    title: `${rule}: ${data.rules[rule].claim}`,
    head: [el("span", { class: "upright" }, el("b", {}, rule), ` ${data.rules[rule].claim}`)],
    // The worst comes up first.
    value: (row) => (row.rules.has(rule) ? WORST_FIRST.indexOf(row.rules.get(rule).mark) : null),
    show: (row) => {
      if (!row.rules.has(rule)) return "";
      const { members, mark } = row.rules.get(rule);
      return el("button", { type: "button", class: `m-${mark}`, "aria-label": `${row.name}, ${rule}: ${MARKS[mark][1]}`, onclick: () => explain(rule, row.name, members) }, MARKS[mark][0]);
    },
  }));
  const first = { name: chosen.arity === 2 ? "comparison" : "arm", value: (row) => row.name };
  sheet(byId("matrix"), [first, ...columns], rows, { empty: "Nothing was audited here.", label: "audit matrix", kind: "matrix" });
  const marks = unique(rows.flatMap((row) => [...row.rules.values()].map((cell) => cell.mark)));
  byId("legend").replaceChildren(...WORST_FIRST.filter((mark) => marks.includes(mark))
    .map((mark) => el("span", {}, el("b", { class: `m-${mark}` }, MARKS[mark][0]), ` ${MARKS[mark][1]}`)));
}

/** What a rule measured of an arm or a comparison, and in which runs. */
function explain(rule, name, findings) {
  const { claim, source } = data.rules[rule];
  const table = el("div", { class: "sheet" });
  const arms = findings[0].arms;
  sheet(table, [
    { name: "ratio", value: (row) => row.ratio, number: true },
    { name: "seed", value: (row) => row.seed ?? "all" },
    ...arms.map((arm, number) => ({ name: arm, value: (row) => String(row.measured[number] ?? "not measured") })),
    { name: "verdict", value: (row) => MARKS[markOf(row)][1] },
    { name: "note", value: (row) => [row.note, row.waived ? `waived: ${row.waived}` : ""].filter(Boolean).join("; ") },
  ], findings, { label: `${rule} of ${name}` });
  const numbers = unique(findings.flatMap(runsOf));
  openDialog(`${rule}: ${claim}`, el("p", {}, `${name}, ${chosen.protocol}. ${source}`), table, el("h3", {}, "Run records"), runSheet(numbers));
}

/** Runs that a finding stands on: those that it names, else all of its cells. */
function runsOf(finding) {
  if (finding.runs.length) return finding.runs;
  return data.cells.filter((cell) => cell.g === finding.g && cell.protocol === finding.protocol && cell.ratio === finding.ratio
    && finding.arms.includes(cell.method) && (finding.seed === null || cell.seed === finding.seed)).flatMap((cell) => cell.runs);
}

function runColumns() {
  const { title, decimals } = metricOf(data.groups[chosen.group]);
  return [
    { name: "record", value: (run) => `runs/${run.slug}-${run.run}/record.json`, show: (run) => el("code", {}, `runs/${run.slug}-${run.run}/record.json`) },
    { name: "stage", value: (run) => run.stage },
    { name: "epochs", value: (run) => run.epochs, show: (run) => short(run.epochs), number: true },
    { name: "training MACs", value: (run) => run.training_macs, show: (run) => metric(run.training_macs), number: true },
    { name: "learning rate", value: (run) => run.learning_rate, show: (run) => short(run.learning_rate), number: true },
    { name: title, value: (run) => run.accuracy, show: (run) => fixed(run.accuracy, decimals), number: true },
    { name: "validation", value: (run) => run.validation_accuracy, show: (run) => fixed(run.validation_accuracy, decimals), number: true },
    { name: "environment", value: (run) => run.environment + 1, number: true },
  ];
}

function runSheet(numbers) {
  const place = el("div", { class: "sheet" });
  sheet(place, runColumns(), numbers.map((number) => data.runs[number]), { empty: "No run was measured.", label: "run records" });
  return place;
}

function drawAccuracy() {
  const place = byId("accuracy-plot");
  const every = byId("all-protocols").checked;
  const names = every ? [...byId("protocol").options].map((option) => option.value) : [chosen.protocol];
  clearPlots(place, names.some((protocol) => measured({ protocol, ratio: ALL }).length) ? "" : "Nothing was measured here.");
  for (const protocol of names) {
    const cells = measured({ protocol, ratio: ALL });
    const about = data.protocols[protocol];
    if (cells.length) accuracyPlot(place, `${protocol}: ${about ? about.title : ""}`, cells, data.methods, data.groups[chosen.group].base, chosen.x, metricOf(data.groups[chosen.group]));
  }
}

function drawMeans() {
  plainSheet(byId("means"), data.groups[chosen.group]?.means ?? NO_TABLE, { empty: "Nothing was measured here.", label: "means and standard deviations" });
}

function drawRates() {
  // Where nothing was tuned, all trials of an arm have one rate, and there is no effect to see.
  const tuned = data.cells.filter((cell) => cell.g === chosen.group && cell.status === "ok" && !chosen.hidden.has(cell.method)
    && data.protocols[cell.protocol]?.retraining === "tuned" && (chosen.ratio === ALL || cell.ratio === chosen.ratio));
  const place = byId("rates-plot");
  clearPlots(place, tuned.length ? "" : "No protocol that tunes the learning rate (such as s3.1) is among these results.");
  tuned.sort((left, right) => left.ratio - right.ratio);
  for (const [key, cells] of grouped(tuned, (cell) => `${cell.protocol}, ratio ${cell.ratio}`)) ratesPlot(place, key, cells, data.runs, data.methods, metricOf(data.groups[chosen.group]));
}

function drawCurves() {
  const curves = data.curves.filter((curve) => curve.g === chosen.group && curve.protocol === chosen.protocol
    && !chosen.hidden.has(curve.method) && (chosen.ratio === ALL || curve.ratio === chosen.ratio));
  byRatio(byId("curves-plot"), curves, "No run here has more than one epoch.", (caption, members) => {
    const rising = new Map();
    for (const finding of data.findings) {
      if ((finding.rule === "F605" || finding.rule === "F606") && finding.verdict === "fail" && finding.g === chosen.group
        && finding.protocol === chosen.protocol && finding.ratio === members[0].ratio) {
        rising.set(finding.arms[0], [...(rising.get(finding.arms[0]) ?? []), finding.rule]);
      }
    }
    // Scratch arms train many times as long: on one axis the others would be a line.
    for (const [scratch, arms] of grouped(members, (curve) => curve.stage === "scratch")) {
      curvesPlot(byId("curves-plot"), `${caption}: ${scratch ? "scratch training" : "retraining"}`, arms, data.methods, rising, metricOf(data.groups[chosen.group]));
    }
  });
}

function drawBudget() {
  const cells = measured();
  const place = byId("budget-plot");
  clearPlots(place, cells.length ? "" : "Nothing was measured here.");
  if (!cells.length) return;
  budgetPlot(place, `${chosen.protocol}: epochs`, cells, data.runs, "epochs", "epochs");
  budgetPlot(place, `${chosen.protocol}: training MACs`, cells, data.runs, "training_macs", "training MACs");
}

function drawTrainability() {
  const cells = measured();
  const place = byId("trainability-plot");
  byRatio(place, cells.filter((cell) => known([cell.jsv_base, cell.jsv_pruned, cell.jsv_end]).length), "No Jacobian was measured here.",
    (caption, members) => jacobianPlot(place, `JSV, ${caption}`, members, data.methods));
  if (cells.some((cell) => cell.ta !== null)) {
    const metric = metricOf(data.groups[chosen.group]);
    trainabilityPlot(place, `${chosen.protocol}: trainability ${metric.title} and final ${metric.title}`, cells, data.methods, metric);
  }
}

function drawNoise() {
  plainSheet(byId("noise-table"), data.groups[chosen.group]?.noise ?? NO_TABLE, { empty: "No cell of it was measured in both arithmetics.", label: "noise floor" });
}

function drawStrictest() {
  plainSheet(byId("strictest-table"), data.groups[chosen.group]?.strictest ?? NO_TABLE, { empty: "No two methods were compared under a setup of that table.", label: "strictest common setup" });
  byId("profiles").replaceChildren(...data.profiles.flatMap((profile) => {
    const place = el("div", { class: "sheet" });
    plainSheet(place, profile, { label: `performance profile ${profile.heading}` });
    return [el("h3", {}, `Performance profile: ${profile.heading}`),
      el("p", {}, `Share of operating points (${profile.points.join(", ")}) at which the mean ${profile.metric ?? "accuracy"} is within so many points of the best one's.`), place];
  }));
}

function drawPublished() {
  byId("published-notes").replaceChildren(...(data.groups[chosen.group]?.notes ?? []).map((note) => el("li", {}, note)));
  plainSheet(byId("published-table"), data.groups[chosen.group]?.published ?? NO_TABLE, { empty: "No published result for this workload is on file.", label: "published and reproduced" });
}

function drawExcluded() {
  const columns = [
    { name: "status", value: (cell) => cell.status },
    { name: "reason", value: (cell) => cell.error },
    { name: "workload", value: (cell) => data.groups[cell.g].title },
    { name: "protocol", value: (cell) => cell.protocol },
    { name: "method", value: (cell) => cell.method },
    { name: "ratio", value: (cell) => cell.ratio, number: true },
    { name: "seed", value: (cell) => cell.seed, number: true },
  ];
  sheet(byId("excluded-table"), columns, data.cells.filter((cell) => cell.status !== "ok"),
    { empty: "None: every cell was measured.", label: "failed and excluded cells" });
}

function drawCells() {
  const { title, decimals } = metricOf(data.groups[chosen.group]);
  const columns = [
    { name: "protocol", value: (cell) => cell.protocol },
    { name: "method", value: (cell) => cell.method },
    { name: "ratio", value: (cell) => cell.ratio, number: true },
    { name: "seed", value: (cell) => cell.seed, number: true },
    { name: "status", value: (cell) => cell.status },
    { name: title, value: (cell) => cell.accuracy, show: (cell) => fixed(cell.accuracy, decimals), number: true },
    { name: "speedup", value: (cell) => cell.speedup, show: (cell) => fixed(cell.speedup), number: true },
    { name: "params left, %", value: (cell) => cell.left, show: (cell) => fixed(cell.left, 1), number: true },
    { name: "epochs", value: (cell) => cell.total_epochs, show: (cell) => short(cell.total_epochs), number: true },
    { name: "training MACs", value: (cell) => cell.total_macs, show: (cell) => metric(cell.total_macs), number: true },
    { name: "TA", value: (cell) => cell.ta, show: (cell) => fixed(cell.ta, decimals), number: true },
    { name: "runs", value: (cell) => cell.runs.length, number: true,
      show: (cell) => el("button", { type: "button", "aria-label": `Runs of ${cellId(cell)}`, onclick: () => openCell(cell) }, `${cell.runs.length} …`) },
  ];
  sheet(byId("cells-table"), columns, data.cells.filter((cell) => cell.g === chosen.group), { label: "cells" });
}

function cellId(cell) {
  return `${data.groups[cell.g].workload}-${cell.method}-${cell.protocol}-r${cell.ratio}-seed${cell.seed}`;
}

/** A word for a shell, whatever is in it. */
function quoted(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", "'\\''")}'`;
}

function commandOf(cell) {
  const words = ["pytest", ...data.cell_test.slice(0, -1), `${data.cell_test.at(-1)}[${cellId(cell)}]`, "--audit-methods", cell.method, "--audit-protocols", cell.protocol, "--audit-seeds", String(cell.seed + 1)];
  if (cell.budget !== "full") words.push("--audit-budget", cell.budget);
  if (cell.precision !== "fp32") words.push("--audit-precision", cell.precision);
  words.push("--audit-backend", cell.backend);
  return words.map(quoted).join(" ");
}

function openCell(cell) {
  openDialog(cellId(cell), ...(cell.error ? [el("p", {}, cell.error)] : []),
    el("p", {}, "To measure it again, with the version below and an empty ledger (add --audit-method for a method of your own, --audit-base for a base model of your own):"),
    el("pre", {}, commandOf(cell)), el("h3", {}, "Run records, parents first"), runSheet(cell.runs));
}

function drawRuns() {
  sheet(byId("runs-table"), runColumns(), data.runs.filter((run) => run.g === chosen.group), { empty: "No run was measured.", label: "runs" });
}

/** Delay the page's load event: what prints a page waits for that, and would find it empty while it is unpacked. */
function unfinished() {
  const frame = el("iframe", { hidden: true });
  document.body.append(frame);
  frame.contentDocument.open();
  return () => { frame.contentDocument.close(); frame.remove(); };
}

const finished = unfinished();
start().catch((error) => {
  byId("problem").hidden = false;
  byId("problem").textContent = `This browser could not draw tables and plots (${error.message}); report.md has every table.`;
  throw error;
}).finally(finished);
