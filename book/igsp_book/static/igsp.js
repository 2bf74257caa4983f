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
  const boxes = ".igsp-scroll, .pst-scrollable-table-container, .highlight pre, mjx-container[display='true'], .output pre";
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
