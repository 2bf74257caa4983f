// Self-check questions: a button per question compares the choice with the answer. Nothing is stored or requested.
"use strict";

for (const question of document.querySelectorAll(".igsp-quiz fieldset")) {
  const feedback = question.querySelector("[data-feedback]");
  const answer = question.querySelector("details");
  const inputs = [...question.querySelectorAll("input")];
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = "Check";
  button.addEventListener("click", () => {
    if (!inputs.some((input) => input.checked)) {
      feedback.textContent = "Choose an answer first.";
      return;
    }
    const right = inputs.every((input) => input.checked === (input.value === "right"));
    feedback.textContent = right ? "Right." : "Not quite: think again, or open the answer.";
    if (right) answer.open = true;
  });
  for (const input of inputs) input.addEventListener("change", () => { feedback.textContent = ""; });
  feedback.before(button);
}
