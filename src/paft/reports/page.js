// Pointing at a dot, or tapping it, marks the same prompt under every arm and spells it out below the figure.
document.querySelectorAll(".strips").forEach(function (figure) {
  var detail = figure.querySelector(".detail"), hint = detail.textContent, dots = figure.querySelectorAll(".dot");
  function show(event) {
    var dot = event.target.closest(".dot");
    if (!dot) { if (event.type === "click") clear(); return; }
    var lines = [];
    dots.forEach(function (other) {
      var same = other.dataset.k === dot.dataset.k;
      other.classList.toggle("marked", same);
      if (same) lines.push(other.dataset.said);
    });
    // accuracy under every arm, then the prompt's id and first words once
    detail.textContent = lines.join("; ") + " \u2014 " + dot.dataset.words;
  }
  function clear() {
    dots.forEach(function (dot) { dot.classList.remove("marked"); });
    detail.textContent = hint;
  }
  figure.addEventListener("pointerover", show);
  figure.addEventListener("click", show);
  figure.addEventListener("pointerleave", function (event) { if (event.pointerType === "mouse") clear(); });
});
// On paper nothing can be unfolded. Single cells are too many for it.
var unfolded = [];
addEventListener("beforeprint", function () {
  document.querySelectorAll("details:not([open], .spelled)").forEach(function (part) { part.open = true; unfolded.push(part); });
});
addEventListener("afterprint", function () { unfolded.splice(0).forEach(function (part) { part.open = false; }); });
