// Small repairs of the theme's accessibility; no state, no request.
"use strict";

function repair() {
  // The search button shows a text that its label does not contain (WCAG 2.5.3): the text alone is the name.
  for (const button of document.querySelectorAll("button.search-button-field")) button.removeAttribute("aria-label");

  // Wide blocks scroll inside a box that the keyboard can reach.
  for (const table of document.querySelectorAll(".bd-article table")) {
    if (table.closest(".igsp-scroll, .highlight")) continue;
    const outer = table.closest(".pst-scrollable-table-container") || table;
    const box = document.createElement("div");
    box.className = "igsp-scroll";
    outer.before(box);
    box.append(outer);
  }
  for (const table of document.querySelectorAll("table.igsp-ledger, table.igsp-stack, .igsp-panel table")) {
    const names = [...table.querySelectorAll("thead th")].map((cell) => cell.textContent.trim());
    for (const row of table.tBodies[0].rows) [...row.cells].forEach((cell, index) => (cell.dataset.label = names[index]));
    table.classList.add("igsp-stacks");
  }
  markScrollable();
}

function markScrollable() {
  const boxes = ".igsp-scroll, .igsp-drawn, .pst-scrollable-table-container, .highlight pre, mjx-container[display='true'], .output pre";
  for (const box of document.querySelectorAll(boxes)) {
    if (box.scrollWidth > box.clientWidth) {
      box.tabIndex = 0;
      if (!box.hasAttribute("role") && box.matches(".igsp-scroll, .pst-scrollable-table-container")) {
        box.setAttribute("role", "region");
        box.setAttribute("aria-label", box.querySelector("caption .caption-text, caption")?.textContent.trim().slice(0, 120) || "Table");
      }
    } else if (box.getAttribute("tabindex") === "0") {
      box.removeAttribute("tabindex");
    }
  }
}

repair();
window.addEventListener("resize", markScrollable);
document.addEventListener("toggle", markScrollable, true); // a table that was folded
window.addEventListener("load", () => setTimeout(markScrollable, 300));
const watch = new ResizeObserver(markScrollable); // fonts that come late, tables that grow
for (const table of document.querySelectorAll(".igsp-scroll > *")) watch.observe(table);

// Hover cards: what is known about a number, by mouse, keyboard and touch. Without JavaScript the title remains.
const card = document.createElement("div");
card.id = "igsp-card";
card.setAttribute("role", "tooltip");
card.hidden = true;
document.body.append(card);
let shownFor = null;

function showCard(mark) {
  if (shownFor === mark) return;
  hideCard();
  shownFor = mark;
  card.replaceChildren(...mark.dataset.card.split("; ").map((part) => Object.assign(document.createElement("div"), { textContent: part })));
  card.hidden = false;
  mark.setAttribute("aria-describedby", card.id);
  const place = mark.getBoundingClientRect(), width = document.documentElement.clientWidth;
  const above = place.top > card.offsetHeight + 12;
  card.style.left = `${Math.max(8, Math.min(place.left, width - card.offsetWidth - 8))}px`;
  card.style.top = `${above ? place.top - card.offsetHeight : place.bottom}px`;
}

function hideCard() {
  card.hidden = true;
  shownFor?.removeAttribute("aria-describedby");
  shownFor = null;
}

// The pointer may move from the number to its card.
function leave() {
  setTimeout(() => shownFor && !card.matches(":hover") && !shownFor.matches(":hover, :focus") && hideCard(), 150);
}

for (const mark of document.querySelectorAll("a.igsp-number[title], abbr[title]")) {
  mark.dataset.card = mark.title;
  mark.removeAttribute("title");
  if (mark.matches("abbr")) mark.tabIndex = 0;
  mark.addEventListener("pointerenter", (event) => event.pointerType === "mouse" && showCard(mark));
  mark.addEventListener("pointerleave", () => leave());
  mark.addEventListener("focus", () => showCard(mark));
  mark.addEventListener("blur", hideCard);
  // The first tap shows the card, the second follows the link.
  let tapped = false;
  mark.addEventListener("pointerdown", (event) => { tapped = event.pointerType === "touch" && shownFor !== mark; });
  mark.addEventListener("click", (event) => { if (tapped) { event.preventDefault(); showCard(mark); } });
}
card.addEventListener("pointerleave", () => leave());
document.addEventListener("keydown", (event) => event.key === "Escape" && hideCard());
document.addEventListener("pointerdown", (event) => !event.target.closest?.("#igsp-card, [data-card]") && hideCard());
window.addEventListener("scroll", hideCard, { passive: true });

// A link into a folded part unfolds it.
function unfold() {
  const target = location.hash && document.getElementById(decodeURIComponent(location.hash.slice(1)));
  for (let part = target?.closest("details"); part; part = part.parentElement.closest("details")) part.open = true;
  target?.scrollIntoView({ block: "center" });
}
window.addEventListener("hashchange", unfold);
if (location.hash) unfold();

// Charts: Vega draws them anew where it runs, with names on hover; a still picture stands there until then.
const base = document.currentScript?.src.replace(/igsp\.js.*$/, "");
const charts = document.querySelectorAll(".igsp-chart");
function drawCharts() {
  const ink = getComputedStyle(document.body).color;
  const axis = { labelColor: ink, titleColor: ink, tickColor: ink, domainColor: ink, gridColor: "#8886" };
  const config = { background: null, axis, legend: { labelColor: ink, titleColor: ink }, header: { labelColor: ink, titleColor: ink },
    title: { color: ink }, text: { color: ink }, rule: { color: ink }, style: { "guide-label": { fill: ink }, "guide-title": { fill: ink } } };
  for (const chart of charts) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const picture = chart.querySelector(".igsp-drawn"), controls = chart.querySelector("form") || document.createElement("form");
    controls.replaceChildren();
    picture.before(controls);
    const actions = { export: true, source: false, compiled: false, editor: false };
    vegaEmbed(picture, spec, { renderer: "svg", config, actions, bind: controls }).then(() => {
      picture.querySelector("summary")?.setAttribute("aria-label", "Download the picture");
      picture.querySelector("svg.marks")?.setAttribute("aria-label", chart.dataset.alt ??= picture.getAttribute("aria-label"));
      for (const name of ["role", "aria-label"]) picture.removeAttribute(name); // the drawing has its own
      markScrollable();
    });
  }
}
if (charts.length && base) {
  const script = document.createElement("script");
  script.src = `${base}vega.js`;
  script.onload = () => {
    drawCharts();
    new MutationObserver(drawCharts).observe(document.documentElement, { attributeFilter: ["data-theme"] });
  };
  document.head.append(script);
}
