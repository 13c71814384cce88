// Draws the charts of a page from its data block (run_page.py, series.py).
// Plotly gets plain text only: no markup in titles, so it sets no style attributes.
"use strict";

(() => {
  const switches = document.getElementById("switches");
  const dashes = ["solid", "dash", "dot", "dashdot"];
  const patterns = { sdpo: "/", mix: "x", none: ".", verify: "\\", route: "/", weigh: "x", update: ".", between: "-", bank: "+", solution: "x", gold: "\\", feedback: "." };
  const config = { displayModeBar: false, displaylogo: false, responsive: true, doubleClick: "reset" };
  const manyPoints = 400;
  let data = null;

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const faint = (hex, alpha) => {
    const [r, g, b] = [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
    return `rgba(${r},${g},${b},${alpha})`;
  };

  const read = () => JSON.parse(document.getElementById("data").textContent);
  const choice = (name) => switches.elements[name].value;
  const shownRuns = () => {
    const boxes = [...switches.querySelectorAll("input[name=run]")];
    const hidden = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
    const shown = data.runs.filter((run) => !hidden.has(run.name));
    const last = (run) => (run.name === data.current ? 1 : 0);
    return shown.sort((a, b) => last(a) - last(b)); // the page's own run lies on top
  };

  // Seconds become minutes or hours, one unit for the whole page.
  const timeUnit = (runs) => {
    const most = Math.max(0, ...runs.flatMap((run) => run.x.seconds));
    if (most > 2 * 3600) return { by: 3600, name: "hours" };
    return most > 120 ? { by: 60, name: "minutes" } : { by: 1, name: "seconds" };
  };
  const places = (x, unit) => {
    const chosen = choice("x");
    return chosen === "seconds" ? x.seconds.map((value) => value / unit.by) : x[chosen];
  };
  const axisTitle = (unit) =>
    ({ steps: "step", tokens: "sampled tokens", seconds: `training time (${unit.name})` })[choice("x")];

  const ticks = { percent: ".3~p", count: "~s", seconds: "~g", number: "" };
  const hovers = { percent: ".1%", count: ",.4~r", seconds: ".3~r", number: ".4~g" };
  const hover = (chart, name) => `${name}: %{y:${hovers[chart.format]}}<extra></extra>`;

  const lineTraces = (chart, run, unit) => {
    const values = run.values[chart.key];
    if (!values) return [];
    const x = places(run.x, unit);
    const own = colour(`--run-${run.style}`);
    const lines = choice("lines");
    const line = { color: own, width: run.name === data.current ? 2 : 1.5, dash: dashes[run.style % 4] };
    const traces = [];
    if (lines !== "raw") {
      const edge = (sign) => values.mean.map((mean, i) => (mean === null ? null : mean + sign * values.deviation[i]));
      const none = { x, mode: "lines", line: { width: 0 }, hoverinfo: "skip", connectgaps: true };
      traces.push({ ...none, y: edge(-1) }, { ...none, y: edge(1), fill: "tonexty", fillcolor: faint(own, 0.15) });
      traces.push({ x, y: values.mean, mode: "lines", line, connectgaps: true, hovertemplate: hover(chart, "mean of 5") });
    }
    if (lines !== "mean") {
      const alone = lines === "raw";
      const name = data.runs.length > 1 ? run.name : "raw";
      const points = x.length > manyPoints ? "lines" : alone ? "lines+markers" : "markers";
      traces.push({
        x, y: values.raw, mode: points, opacity: alone ? 1 : 0.55,
        marker: { color: own, size: alone ? 4 : 3.5 }, line: alone ? line : { color: own, width: 0.7 },
        hovertemplate: hover(chart, plain(name)),
      });
    }
    return traces;
  };

  // Names of runs are texts of others: Plotly reads some markup and %{...} in templates.
  const plain = (text) => text.replace(/[<>&%{}]/g, "_");

  // The tasks of the page's own run: its colour, thinner, with the signs of the legend (MARKS).
  const signs = ["square", "diamond", "triangle-up", "triangle-down", "x-thin-open", "cross-thin-open", "star", "hexagon"];
  const taskTraces = (chart, run, unit) => {
    if (run.name !== data.current) return [];
    const own = colour(`--run-${run.style}`);
    return Object.entries(run.evaluations.tasks).map(([task, y], i) => ({
      x: places(run.evaluations.x, unit), y, mode: "lines+markers", opacity: 0.75,
      line: { color: own, width: 1, dash: dashes[1 + (i % 3)] },
      marker: { color: own, size: 7, symbol: signs[i % signs.length], line: { color: own, width: 1.5 } },
      hovertemplate: hover(chart, plain(task)),
    }));
  };

  const evaluationTraces = (chart, run, unit) => {
    const found = run.evaluations;
    if (found.raw.length === 0) return [];
    const own = colour(`--run-${run.style}`);
    const name = data.runs.length > 1 ? plain(run.name) : "avg@";
    return [...taskTraces(chart, run, unit), {
      x: places(found.x, unit), y: found.raw, mode: "lines+markers",
      line: { color: own, width: 1.5, dash: dashes[run.style % 4] }, marker: { color: own, size: 5 },
      error_y: {
        type: "data", symmetric: false, color: own, thickness: 1, width: 3,
        array: found.high.map((high, i) => high - found.raw[i]),
        arrayminus: found.low.map((low, i) => found.raw[i] - low),
      },
      customdata: found.k.map((k, i) => [k, found.low[i], found.high[i]]),
      hovertemplate: `${name === "avg@" ? "" : name + " "}avg@%{customdata[0]}: %{y:.1%} (%{customdata[1]:.1%} to %{customdata[2]:.1%})<extra></extra>`,
    }];
  };

  const prefixes = { share: "--", source: "--source-" };
  const partColour = (part) => colour(`${prefixes[part.key.split("_", 1)[0]] ?? "--stage-"}${part.name}`);

  const stackTraces = (chart, unit) => {
    const run = data.runs.find((candidate) => candidate.name === data.current);
    const known = chart.parts.filter((part) => run.values[part.key]?.raw.some((value) => value));
    const there = (_, at) => known.some((part) => run.values[part.key].raw[at] !== null);
    const x = places(run.x, unit).filter(there);
    const traces = known.map((part) => ({
      x, y: run.values[part.key].raw.filter(there), name: part.name, part: part.key, mode: "lines", stackgroup: "parts",
      line: { width: 0.7, color: partColour(part) }, fillcolor: faint(partColour(part), 0.55),
      fillpattern: patterns[part.name]
        ? { shape: patterns[part.name], size: 6, solidity: 0.25, fgcolor: partColour(part), bgcolor: faint(partColour(part), 0.45), fillmode: "replace" }
        : undefined,
      hovertemplate: hover(chart, part.name),
    }));
    if (chart.line && run.values[chart.line.key]) {
      traces.push({
        x, y: run.values[chart.line.key].raw.filter(there), name: chart.line.name, mode: "lines",
        line: { color: colour("--text"), width: 1.5, dash: "dot" }, hovertemplate: hover(chart, chart.line.name),
      });
    }
    return traces;
  };

  const layout = (chart, unit) => {
    const axis = {
      gridcolor: colour("--line"), linecolor: colour("--line"), zeroline: false, automargin: true, showline: false,
      ticklabelstandoff: chart.parts.length ? 3 : 0, tickfont: { size: 10, color: colour("--muted") }, nticks: 5, exponentformat: "e",
    };
    return {
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false,
      font: { family: getComputedStyle(document.body).fontFamily, size: 11, color: colour("--text") },
      margin: { l: 44, r: 10, t: 8, b: 34 }, hovermode: "x unified", dragmode: matchMedia("(pointer: fine)").matches ? "zoom" : false,
      hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--text"), size: 11 } },
      xaxis: { ...axis, title: { text: axisTitle(unit), font: { size: 10, color: colour("--muted") }, standoff: 4 }, tickformat: choice("x") === "tokens" ? "~s" : "" },
      yaxis: { ...axis, tickformat: ticks[chart.format], ticksuffix: chart.format === "seconds" ? " s" : "", rangemode: chart.parts.length ? "tozero" : "normal",
        // A line that never leaves 0% would else be drawn between -100% and 100%.
        autorangeoptions: chart.format === "percent" ? { clipmin: 0, clipmax: 1 } : {} },
    };
  };

  const draw = (figure) => {
    const chart = data.charts.find((candidate) => candidate.key === figure.dataset.chart);
    if (!chart) return;
    const runs = shownRuns();
    const unit = timeUnit(data.runs);
    const traces = chart.parts.length > 0
      ? stackTraces(chart, unit)
      : runs.flatMap((run) => (chart.key === "accuracy" ? evaluationTraces : lineTraces)(chart, run, unit));
    const plot = figure.querySelector(".plot");
    figure.toggleAttribute("data-empty", traces.length === 0);
    for (const item of figure.querySelectorAll("[data-part]")) {
      item.hidden = !traces.some((trace) => trace.part === item.dataset.part);
    }
    plot.setAttribute("aria-label", `${chart.title}: ${chart.last || "nothing recorded yet"}`);
    Plotly.react(plot, traces.map(({ part, ...trace }) => ({ type: "scatter", ...trace })), layout(chart, unit), config);
  };

  const drawAll = () => document.querySelectorAll("[data-chart]").forEach(draw);

  // The choices of the axis and the lines hold for all pages of this browser.
  const remembered = ["x", "lines"];
  const remember = () => {
    try {
      for (const name of remembered) localStorage.setItem(`srpo.${name}`, choice(name));
    } catch { /* a browser without storage forgets */ }
  };
  const recall = () => {
    try {
      for (const name of remembered) {
        const value = localStorage.getItem(`srpo.${name}`);
        const input = [...switches.elements[name]].find((radio) => radio.value === value);
        if (input) input.checked = true;
      }
    } catch { /* likewise */ }
  };

  data = read();
  recall();
  drawAll();
  switches.addEventListener("change", () => { remember(); drawAll(); });
  document.addEventListener("srpo:refresh", () => { data = read(); drawAll(); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  document.documentElement.dataset.drawn = "true";
})();
