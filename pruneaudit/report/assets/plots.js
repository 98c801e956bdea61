// Plots: what is drawn where, from the rows in view. Plotly draws; colours and markers are those of the paper figures.

const STAGES = [
  ["pretrain", "pretraining", "#8C96A3"],
  ["topup", "top-up", "#56B4E9"],
  ["prune", "pruning", "#E69F00"],
  ["retrain", "retraining", "#0072B2"],
  ["scratch", "scratch training", "#009E73"],
  ["tuning", "tuning", "#CC79A7"],
];

/** Methods that a plot names in a legend of its own, and letters of a name that a label shows. */
const LEGEND_NAMES = 9;
const LABEL_LENGTH = 30;
/** Ticks of a logarithmic axis. */
const MOST_TICKS = 7;

function variable(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function colourOf(look) {
  return document.documentElement.dataset.theme === "dark" ? look.dark : look.colour;
}

/** The same colour, let through. */
function faint(hex, share) {
  const [red, green, blue] = [1, 3, 5].map((start) => parseInt(hex.slice(start, start + 2), 16));
  return `rgba(${red},${green},${blue},${share})`;
}

/** How the metric of the chosen workload is spoken of. */
const ACCURACY = { title: "accuracy", axis: "accuracy, %", unit: " %", points: "percentage points", aside: "", decimals: 2, improving: "rising" };

function metricOf(group) {
  return group?.metric ?? ACCURACY;
}

/** A value of a metric, with its unit unless told. */
function valueOf(metric, value, unit = metric.unit) {
  return value === null ? "" : `${fixed(value, metric.decimals)}${unit}`;
}

function axis(heading, more = {}) {
  const line = variable("--line");
  return { title: { text: heading }, gridcolor: line, zerolinecolor: line, linecolor: line, automargin: true, ...more };
}

/** A logarithmic axis with plain numbers as ticks: the finest of some rounds that has few enough. */
function logAxis(heading, values) {
  const found = known(values).filter((value) => value > 0);
  if (!found.length) return axis(heading, { type: "log" });
  const low = Math.min(...found) / 1.3;
  const high = Math.max(...found) * 1.3;
  const powers = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power += 1) powers.push(power);
  const choices = [[1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9], [1, 1.5, 2, 3, 5, 7], [1, 2, 5], [1, 3], [1]]
    .map((digits) => powers.flatMap((power) => digits.map((digit) => digit * 10 ** power)).filter((tick) => low <= tick && tick <= high));
  let ticks = choices.find((choice) => choice.length <= MOST_TICKS) ?? choices.at(-1);
  // Thousands of powers of ten: every so many.
  if (ticks.length > MOST_TICKS) ticks = ticks.filter((_, place) => place % Math.ceil(ticks.length / MOST_TICKS) === 0);
  return axis(heading, { type: "log", range: [Math.log10(low), Math.log10(high)], tickvals: ticks, ticktext: ticks.map(short) });
}

/** A name as a label: short, and text, since plotly reads some HTML in labels. */
function plain(text) {
  const name = String(text);
  const brief = name.length > LABEL_LENGTH ? `${name.slice(0, LABEL_LENGTH - 1)}…` : name;
  return brief.replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

/** One plot with its caption, added to a place. */
function plot(place, caption, traces, { height, ...layout }) {
  const target = el("div", { class: "plot", role: "img", "aria-label": caption });
  if (height) target.style.height = `${height}px`;
  place.append(el("figure", {}, el("figcaption", {}, caption), target));
  // Once all plots of the section have their place: before that, the first one would take the room of all.
  queueMicrotask(() => Plotly.newPlot(
    target,
    traces,
    {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      font: { family: "system-ui, sans-serif", size: 12, color: variable("--text") },
      margin: { l: 52, r: 12, t: 8, b: 44 },
      hovermode: "closest",
      // Of more methods the names above the first plot are the legend.
      showlegend: new Set(traces.map((trace) => trace.name)).size <= LEGEND_NAMES,
      legend: { orientation: "h", y: 1, yanchor: "bottom", traceorder: "normal" },
      hoverlabel: { align: "left" },
      ...layout,
    },
    { responsive: true, displaylogo: false, modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"] },
  ));
}

/** Empty a place of plots; say why where nothing follows. */
function clearPlots(place, reason) {
  place.querySelectorAll(".plot").forEach((target) => Plotly.purge(target));
  place.replaceChildren(...(reason ? [el("p", { class: "empty" }, reason)] : []));
}

function line(look, more = {}) {
  return { color: colourOf(look), width: 2, dash: look.dash, ...more };
}

/** The metric against speedup or parameters left, for one protocol. */
function accuracyPlot(place, caption, cells, methods, base, x, metric) {
  const traces = [];
  const found = known(cells.map((cell) => cell[x]));
  const [least, most] = [Math.min(...found), Math.max(...found)];
  // At one operating point all methods have one place: they stand side by side around it.
  const alone = found.length > 0 && most - least < 0.05 * most;
  const arranged = [...grouped(cells, (cell) => cell.method)];
  const shifts = new Map(arranged.map(([method], number) => [method, alone ? 1 + 0.3 * ((number + 0.5) / arranged.length - 0.5) : 1]));
  const unit = x === "speedup" ? "x speedup" : " % of parameters";
  for (const [method, members] of arranged) {
    const look = methods[method];
    const shift = shifts.get(method);
    const arms = [...grouped(members, (cell) => cell.ratio).values()]
      .map((seeds) => ({ ratio: seeds[0].ratio, x: statistic(seeds.map((cell) => cell[x])), y: statistic(seeds.map((cell) => cell.accuracy)) }))
      .filter((arm) => arm.x && arm.y)
      .sort((left, right) => left.x.mean - right.x.mean);
    traces.push({
      type: "scatter",
      mode: "markers",
      name: plain(method),
      legendgroup: method,
      showlegend: false,
      x: members.map((cell) => (cell[x] === null ? null : cell[x] * shift)),
      y: members.map((cell) => cell.accuracy),
      text: members.map((cell) => `${plain(method)}, seed ${cell.seed}<br>${valueOf(metric, cell.accuracy)}`),
      hovertemplate: "%{text}<extra></extra>",
      marker: { color: faint(colourOf(look), 0.4), symbol: look.marker, size: 5 },
    });
    traces.push({
      type: "scatter",
      mode: "lines+markers",
      name: plain(method),
      legendgroup: method,
      x: arms.map((arm) => arm.x.mean * shift),
      y: arms.map((arm) => arm.y.mean),
      error_y: { type: "data", array: arms.map((arm) => arm.y.std ?? 0), color: colourOf(look), thickness: 1.2, width: 4 },
      text: arms.map((arm) => `<b>${plain(method)}</b>, ratio ${arm.ratio}<br>${valueOf(metric, arm.y.mean, "")}${arm.y.std === null ? "" : ` ± ${valueOf(metric, arm.y.std, "")}`}${metric.unit}, n = ${arm.y.n}<br>${short(arm.x.mean)}${unit}`),
      hovertemplate: "%{text}<extra></extra>",
      line: line(look),
      marker: { symbol: look.marker, size: 9, color: colourOf(look) },
    });
  }
  // Axes are made for points: the line of the base model would lie on the frame.
  const ends = known([base, ...traces.flatMap((trace) => trace.y.flatMap((y, number) => [y - (trace.error_y?.array[number] ?? 0), y + (trace.error_y?.array[number] ?? 0)]))]);
  const [low, high] = [Math.min(...ends), Math.max(...ends)];
  const room = 0.06 * (high - low) || 1;
  const shapes = base === null ? [] : [{ type: "line", xref: "paper", x0: 0, x1: 1, y0: base, y1: base, line: { color: variable("--soft"), dash: "dash", width: 1 } }];
  plot(place, caption, traces, {
    xaxis: axis(x === "speedup" ? "speedup, MACs(base) / MACs(pruned)" : "parameters left, %", {
      ...(alone ? { range: x === "speedup" ? [0.75 * least, 1.25 * most] : [1.25 * most, 0.75 * least], tickvals: [(least + most) / 2], ticktext: [short((least + most) / 2)] } : {}),
      ...(alone || x === "speedup" ? {} : { autorange: "reversed" }),
    }),
    yaxis: axis(`test ${metric.axis}`, { range: [low - room, high + room] }),
    shapes,
  });
}

/** The metric of all retrainings that were tried, by first learning rate, at one ratio. */
function ratesPlot(place, caption, cells, runs, methods, metric) {
  const traces = [];
  for (const [method, members] of grouped(cells, (cell) => cell.method)) {
    const look = methods[method];
    const trials = members.flatMap((cell) => cell.runs.map((number) => ({ ...runs[number], chosen: number === cell.result, cellSeed: cell.seed })))
      .filter((run) => (run.stage === "retrain" || run.stage === "scratch") && run.learning_rate !== null);
    const means = [...grouped(trials, (run) => run.learning_rate)]
      .map(([rate, seeds]) => ({ rate, y: statistic(seeds.map((run) => run.accuracy)), chosen: seeds.filter((run) => run.chosen).length }))
      .sort((left, right) => left.rate - right.rate);
    traces.push({
      type: "scatter",
      mode: "lines+markers",
      name: plain(method),
      legendgroup: method,
      x: means.map((point) => point.rate),
      y: means.map((point) => point.y.mean),
      error_y: { type: "data", array: means.map((point) => point.y.std ?? 0), color: colourOf(look), thickness: 1.2, width: 4 },
      text: means.map((point) => `<b>${plain(method)}</b><br>${valueOf(metric, point.y.mean)}, n = ${point.y.n}<br>chosen for ${point.chosen} seeds`),
      hovertemplate: "%{text}<br>learning rate %{x}<extra></extra>",
      line: line(look),
      marker: {
        symbol: look.marker,
        size: means.map((point) => (point.chosen ? 12 : 7)),
        color: means.map((point) => (point.chosen ? faint(colourOf(look), 0.35) : colourOf(look))),
        line: { color: colourOf(look), width: means.map((point) => (point.chosen ? 2.5 : 0)) },
      },
    });
  }
  plot(place, caption, traces, {
    xaxis: logAxis("first learning rate of retraining", traces.flatMap((trace) => trace.x)),
    yaxis: axis(`test ${metric.axis}`),
  });
}

/** Learning curves at one ratio, with drops of the learning rate, and stages shaded that had not converged. */
function curvesPlot(place, caption, curves, methods, rising, metric) {
  const traces = [];
  const shapes = [];
  const drops = new Set();
  // Of many curves the shades would add up to a wall.
  const shade = Math.min(0.13, 0.6 / curves.length);
  for (const curve of curves) {
    const look = methods[curve.method];
    const colour = colourOf(look);
    const band = { type: "scatter", mode: "lines", hoverinfo: "skip", line: { width: 0 }, name: plain(curve.method), legendgroup: curve.method, showlegend: false };
    traces.push({ ...band, x: curve.epochs, y: curve.low });
    traces.push({ ...band, x: curve.epochs, y: curve.high, fill: "tonexty", fillcolor: faint(colour, shade) });
    traces.push({
      type: "scatter",
      mode: "lines",
      name: plain(curve.method),
      legendgroup: curve.method,
      x: curve.epochs,
      y: curve.mean,
      line: line(look),
      hovertemplate: `<b>${plain(curve.method)}</b><br>epoch %{x}: %{y:.${metric.decimals}f}${metric.unit} (n = ${curve.n})<extra></extra>`,
    });
    const last = curve.epochs.at(-1);
    const starts = curve.rates.map(([epoch]) => epoch).filter((epoch) => epoch < last);
    starts.filter((epoch) => epoch > 0).forEach((epoch) => drops.add(epoch));
    const stages = { F605: [0, starts[1] ?? last], F606: [starts.at(-1) ?? 0, last] };
    for (const rule of rising.get(curve.method) ?? []) {
      const [x0, x1] = stages[rule];
      shapes.push({ type: "rect", yref: "paper", y0: 0, y1: 1, x0, x1, fillcolor: faint(colour, shade), line: { width: 0 }, layer: "below" });
    }
  }
  for (const epoch of drops) {
    shapes.push({ type: "line", yref: "paper", y0: 0, y1: 1, x0: epoch, x1: epoch, line: { color: variable("--soft"), dash: "dot", width: 1 } });
  }
  const most = Math.max(...curves.map((curve) => curve.epochs.at(-1)));
  plot(place, caption, traces, { xaxis: axis("epoch", { rangemode: "tozero", ...(most <= 8 ? { dtick: 1 } : {}) }), yaxis: axis(`test ${metric.axis}`), shapes });
}

/** Cost of each arm by stage; mean over its cells. */
function budgetPlot(place, caption, cells, runs, quantity, heading) {
  const arms = [...grouped(cells, (cell) => cell.method)].sort(([left], [right]) => (left < right ? 1 : -1));
  const traces = STAGES.map(([stage, name, colour]) => ({
    type: "bar",
    orientation: "h",
    name,
    y: arms.map(([method]) => plain(method)),
    x: arms.map(([, members]) => members.reduce((sum, cell) => sum + costs(cell, runs, quantity)[stage], 0) / members.length),
    marker: { color: colour, pattern: { shape: stage === "tuning" ? "/" : "", size: 6 } },
    hovertemplate: `${name}: %{x:.4g}<extra>%{y}</extra>`,
  })).filter((trace) => trace.x.some((value) => value > 0));
  // A plot is no longer than a page of paper, which would cut it.
  const bar = isPrinting() ? Math.min(26, 700 / arms.length) : 26;
  plot(place, caption, traces, {
    barmode: "stack",
    showlegend: true,
    height: 150 + bar * arms.length,
    xaxis: axis(heading, { tickformat: quantity === "epochs" ? "~f" : "~s" }),
    // Every name, small enough to stand beside its bar.
    yaxis: axis("", { type: "category", dtick: 1, tickfont: { size: Math.min(12, 0.75 * bar) } }),
  });
}

/** What a cell cost by stage; retrainings that were tried and not chosen are tuning. */
function costs(cell, runs, quantity) {
  const found = Object.fromEntries(STAGES.map(([stage]) => [stage, 0]));
  // The result of a scratch arm does not rest on the base model that it is compared with.
  const alone = cell.result !== null && runs[cell.result].stage === "scratch";
  for (const number of cell.runs) {
    const run = runs[number];
    const trial = run.stage === "retrain" || run.stage === "scratch";
    if (alone && !trial) continue;
    found[trial && number !== cell.result ? "tuning" : run.stage] += run[quantity] ?? 0;
  }
  return found;
}

/** Mean Jacobian singular value along the stages, at one ratio. */
function jacobianPlot(place, caption, cells, methods) {
  const stages = ["base", "pruned", "end"];
  const traces = [];
  for (const [method, members] of grouped(cells, (cell) => cell.method)) {
    const look = methods[method];
    const means = stages.map((stage) => statistic(members.map((cell) => cell[`jsv_${stage}`])));
    traces.push({
      type: "scatter",
      mode: "lines+markers",
      name: plain(method),
      legendgroup: method,
      x: stages.map((stage) => (stage === "base" ? "base model" : stage === "pruned" ? "after pruning" : "at the end")),
      y: means.map((mean) => (mean ? mean.mean : null)),
      connectgaps: true,
      line: line(look),
      marker: { symbol: look.marker, size: 9, color: colourOf(look) },
      hovertemplate: `<b>${plain(method)}</b><br>%{x}: %{y:.3g}<extra></extra>`,
    });
  }
  plot(place, caption, traces, { xaxis: axis("", { type: "category" }), yaxis: logAxis("mean JSV", traces.flatMap((trace) => trace.y)) });
}

/** The metric's mean over the first stage against its last value, each seed a dot. */
function trainabilityPlot(place, caption, cells, methods, metric) {
  const traces = [...grouped(cells.filter((cell) => cell.ta !== null), (cell) => cell.method)].map(([method, members]) => ({
    type: "scatter",
    mode: "markers",
    name: plain(method),
    legendgroup: method,
    x: members.map((cell) => cell.ta),
    y: members.map((cell) => cell.accuracy),
    text: members.map((cell) => `<b>${plain(method)}</b>, ratio ${cell.ratio}, seed ${cell.seed}`),
    hovertemplate: `%{text}<br>TA %{x:.${metric.decimals}f}${metric.unit}, final %{y:.${metric.decimals}f}${metric.unit}<extra></extra>`,
    marker: { symbol: methods[method].marker, size: 9, color: faint(colourOf(methods[method]), 0.75) },
  }));
  plot(place, caption, traces, { xaxis: axis(`trainability ${metric.axis}`), yaxis: axis(`final test ${metric.axis}`) });
}
