// The explorer: metric against retention over the stored strategies. Data come with the page; nothing is requested.
"use strict";

function startExplorer(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const control = (name) => root.querySelector(`[data-control="${name}"]`);
  const [run, metric, dimension, scale, strategy] = ["run", "metric", "dimension", "scale", "strategy"].map(control);
  const picture = root.querySelector("svg");
  const summary = root.querySelector("[data-summary]");
  const legend = root.querySelector(".igsp-legend");
  const box = { left: 62, right: 500, top: 14, bottom: 300 };

  const ranks = (values) => values.map((v) =>
    values.filter((w) => w < v).length + (values.filter((w) => w === v).length + 1) / 2);

  function pearson(a, b) {
    const mean = (x) => x.reduce((s, v) => s + v, 0) / x.length;
    const [ma, mb] = [mean(a), mean(b)];
    const sum = (f) => a.reduce((s, _, i) => s + f(a[i] - ma, b[i] - mb), 0);
    return sum((x, y) => x * y) / Math.sqrt(sum((x) => x * x) * sum((_, y) => y * y));
  }

  function svg(name, attributes, text) {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
    if (text !== undefined) node.textContent = text;
    return node;
  }

  function axis(values, from, to) {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const pad = (high - low || 1) * 0.06;
    const rough = (high - low || 1) / 6, power = 10 ** Math.floor(Math.log10(rough));
    const step = power * [1, 2, 5, 10].find((k) => k * power >= rough);
    const first = Math.ceil(low / step), count = Math.floor(high / step) - first + 1;
    const ticks = low < high ? Array.from({ length: count }, (_, i) => (first + i) * step) : [low];
    return { ticks, at: (v) => from + (v - low + pad) / (high - low + 2 * pad) * (to - from) };
  }

  const shapes = {
    general: (x, y) => svg("circle", { cx: x, cy: y, r: 6 }),
    commonsense: (x, y) => svg("rect", { x: x - 5.5, y: y - 5.5, width: 11, height: 11 }),
    code: (x, y) => svg("path", { d: `M${x} ${y - 7}l7 12h-14z` }),
    math: (x, y) => svg("path", { d: `M${x} ${y - 8}l8 8l-8 8l-8-8z` }),
    "self-written": (x, y) => svg("path", { d: `M${x} ${y - 7}v14M${x - 7} ${y}h14`, fill: "none", "stroke-width": 2.5 }),
    mix: (x, y) => svg("path", { d: `M${x - 6} ${y - 6}l12 12M${x + 6} ${y - 6}l-12 12`, fill: "none", "stroke-width": 2.5 }),
  };

  function mark(kind, x, y) {
    const made = shapes[kind](x, y);
    made.setAttribute("class", `igsp-mark igsp-mark-${kind}`);
    return made;
  }

  function explained(kind) {
    const drawing = svg("svg", { viewBox: "-10 -10 20 20", width: 18, "aria-hidden": "true" });
    const entry = document.createElement("span");
    drawing.append(mark(kind, 0, 0));
    entry.append(drawing, kind[0].toUpperCase() + kind.slice(1));
    return entry;
  }

  // Offers for highlighting what the chosen run holds, and keeps the choice where it can.
  function offer() {
    const kept = strategy.value;
    const names = data.filter((p) => p.run === run.value).map((p) => p.strategy);
    strategy.replaceChildren(strategy.options[0], ...names.map((name) => new Option(name, name)));
    strategy.value = names.includes(kept) ? kept : "";
  }

  function draw() {
    const rows = data.filter((p) => p.run === run.value && p.metrics[metric.value] !== undefined);
    const sources = rows.filter((p) => p.kind !== "mix" && p.kind !== "self-written");
    const ranked = scale.value === "ranks";
    const shown = ranked ? sources : rows;
    let xs = shown.map((p) => p.metrics[metric.value]);
    let ys = shown.map((p) => p.retention[dimension.value]);
    if (ranked) [xs, ys] = [ranks(xs), ranks(ys)];
    const x = axis(xs, box.left, box.right), y = axis(ys, box.bottom, box.top);
    const round = (v) => Number(v.toPrecision(3)).toString();
    const parts = [
      svg("path", { d: `M${box.left} ${box.top}V${box.bottom}H${box.right}`, fill: "none", stroke: "currentColor" }),
      svg("text", { x: (box.left + box.right) / 2, y: box.bottom + 43, "text-anchor": "middle" },
        metric.selectedOptions[0].text + (ranked ? ", rank" : "")),
      svg("text", { x: 14, y: (box.top + box.bottom) / 2, "text-anchor": "middle",
        transform: `rotate(-90 14 ${(box.top + box.bottom) / 2})` },
        `${dimension.selectedOptions[0].text} ${ranked ? "rank" : "retention, %"}`),
    ];
    for (const a of x.ticks) {
      parts.push(svg("path", { d: `M${x.at(a)} ${box.bottom}v5`, stroke: "currentColor" }));
      parts.push(svg("text", { x: x.at(a), y: box.bottom + 20, "text-anchor": "middle" }, round(a)));
    }
    for (const b of y.ticks) {
      parts.push(svg("path", { d: `M${box.left} ${y.at(b)}h-5`, stroke: "currentColor" }));
      parts.push(svg("text", { x: box.left - 8, y: y.at(b) + 5, "text-anchor": "end" }, round(b)));
    }
    shown.forEach((p, i) => {
      const drawn = mark(p.kind, x.at(xs[i]), y.at(ys[i]));
      if (p.strategy === strategy.value) {
        drawn.classList.add("igsp-mark-chosen");
        parts.push(svg("text", { x: x.at(xs[i]), y: y.at(ys[i]) - 14, "text-anchor": x.at(xs[i]) > 280 ? "end" : "start" }, p.strategy));
      }
      const measured = `${metric.selectedOptions[0].text} ${p.metrics[metric.value]}, ${dimension.value} ${p.retention[dimension.value]} %`;
      drawn.append(svg("title", {}, `${p.strategy}: ${measured}`));
      parts.push(drawn);
    });
    picture.replaceChildren(...parts);
    legend.replaceChildren(...Object.keys(shapes).filter((kind) => shown.some((p) => p.kind === kind)).map(explained));
    const rho = pearson(ranks(sources.map((p) => p.metrics[metric.value])), ranks(sources.map((p) => p.retention[dimension.value])));
    const best = rows.reduce((a, b) => (b.retention[dimension.value] > a.retention[dimension.value] ? b : a));
    summary.textContent = (sources.length < 3 ? "Too few sources for a rank correlation. "
      : `Over ${sources.length} sources the rank correlation of ${metric.selectedOptions[0].text} with ` +
        `${dimension.selectedOptions[0].text} retention is ${Number.isFinite(rho) ? rho.toFixed(2).replace("-", "\u2212") : "not defined, as all are equal"}. `) +
      `Most is kept by ${best.strategy}: ${best.retention[dimension.value].toFixed(1)} %.`;
    const chosen = rows.find((p) => p.strategy === strategy.value);
    if (chosen) summary.textContent += ` ${chosen.strategy}: ${chosen.retention[dimension.value].toFixed(1)} %, place ` +
      `${rows.filter((p) => p.retention[dimension.value] > chosen.retention[dimension.value]).length + 1} of ${rows.length}.`;
    picture.setAttribute("aria-label", summary.textContent);
  }

  run.addEventListener("change", offer);
  for (const select of [run, metric, dimension, scale, strategy]) select.addEventListener("change", draw);
  offer();
  draw();
}

// Sliders over mixes: the measured retention where the mix was measured, else the interpolation that the build fitted.
function startMixes(root) {
  const data = JSON.parse(root.querySelector("script[type='application/json']").textContent);
  const sliders = [...root.querySelectorAll("input")];
  const rows = [...root.querySelectorAll("tbody tr")];
  const signed = (v) => (Math.abs(v) < 0.005 ? "" : v < 0 ? "\u2212" : "+") + Math.abs(v).toFixed(2);
  const apart = (trial, shares) => Math.hypot(...trial.shares.map((share, i) => share - shares[i]));

  function terms(shares) {
    if (data.form === "linear") return shares;
    return [...shares, ...shares.flatMap((a, i) => shares.slice(i + 1).map((b) => a * b))];
  }

  function draw() {
    const total = sliders.reduce((sum, slider) => sum + Number(slider.value), 0);
    const shares = sliders.map((slider) => (total ? slider.value / total : 0));
    sliders.forEach((slider, i) => {
      const text = `${slider.value} windows, ${(100 * shares[i]).toFixed(1)} %`;
      slider.nextElementSibling.textContent = text;
      slider.setAttribute("aria-valuetext", text);
    });
    const nearest = data.trials.reduce((a, b) => (apart(b, shares) < apart(a, shares) ? b : a));
    const measured = apart(nearest, shares) < 1e-6;
    data.dimensions.forEach((name, d) => {
      const [value, against] = rows[d].querySelectorAll("td");
      const kept = measured || data.form === "nearest" ? nearest.kept[d]
        : terms(shares).reduce((sum, term, i) => sum + term * data.coefficients[name][i], 0);
      value.textContent = total ? kept.toFixed(2) + (measured ? "" : ` \u00b1 ${data.error[name].toFixed(2)}`) : "";
      against.textContent = total ? signed(kept - data.trials[0].kept[d]) : "";
    });
    root.querySelector("[data-summary]").textContent = !total ? "Give at least one source a window."
      : measured ? `Measured: mix ${data.trials.indexOf(nearest) + 1} of the table below.`
      : "Interpolated: this mix was not measured.";
  }

  for (const slider of sliders) slider.addEventListener("input", draw);
  root.hidden = false;
  draw();
}

for (const root of document.querySelectorAll(".igsp-explorer")) (root.matches(".igsp-mixes") ? startMixes : startExplorer)(root);
