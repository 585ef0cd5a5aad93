// Maps of prompts by examples: one is shown at a time; a cell picked in it, or from a list, is spelled out below it.
document.querySelectorAll(".exhibit").forEach(function (exhibit) {
  var views = Array.from(exhibit.querySelectorAll(".view")), picked = exhibit.querySelector(".picked");
  var detail = exhibit.querySelector(".detail"), hint = detail.textContent;
  var names = Array.from(exhibit.querySelectorAll(".names")).map(function (list) {
    return Array.from(list.children, function (item) { return item.textContent; });
  });
  var prompts = exhibit.dataset.prompts.split(" "), examples = exhibit.dataset.examples.split(" ");
  var kinds = { R: "right", T: "tied", W: "wrong", U: "unreadable", ".": "unbought" };
  var texts = {}, tables = {}, current = null, at = null;
  exhibit.querySelectorAll("article").forEach(function (article) { texts[article.dataset.key] = article; });
  views.forEach(function (view) {
    view.canvas = view.querySelector("canvas");
    view.canvas.parentNode.hidden = false;
    view.rows = view.canvas.dataset.rows.split(" ").map(Number);
    view.columns = view.canvas.dataset.columns.split(" ").map(Number);
    if (view.canvas.dataset.cells) tables[view.dataset.scorer + " " + view.dataset.show] = view.canvas.dataset.cells;
  });

  function letter(scorer, arm, row, column) { return tables[scorer + " " + arm][row * examples.length + column]; }
  // What a cell is, as a class of the style sheet; row and column count drawn prompts and examples.
  function kind(view, row, column) {
    var both = view.dataset.show.split("-").map(function (arm) { return letter(view.dataset.scorer, arm, row, column); });
    if (both.length === 1) return kinds[both[0]];
    if (both.indexOf(".") >= 0) return "unbought";
    if ((both[0] === "R") === (both[1] === "R")) return both[0] === "R" ? "right" : "neither";
    return both[0] === "R" ? "first" : "second";
  }

  // The same as the legend says it.
  function said(view, row, column) {
    return view.querySelector(".swatch." + kind(view, row, column)).textContent.replace(/: [\d,]+$/, "");
  }

  function draw(view) {
    var style = getComputedStyle(view), colours = {}, canvas = view.canvas, scale = devicePixelRatio || 1;
    view.width = Math.min(24, Math.max(2, view.querySelector(".map").clientWidth / view.columns.length));
    view.height = Math.min(20, Math.max(4, 480 / view.rows.length));
    canvas.style.width = view.width * view.columns.length + "px";
    canvas.style.height = view.height * view.rows.length + "px";
    canvas.width = Math.round(view.width * view.columns.length * scale);
    canvas.height = Math.round(view.height * view.rows.length * scale);
    var pen = canvas.getContext("2d"), gap = view.width >= 6 && view.height >= 6 ? Math.round(scale) : 0;
    view.rows.forEach(function (row, y) {
      view.columns.forEach(function (column, x) {
        var name = kind(view, row, column);
        var left = Math.round(x * view.width * scale), top = Math.round(y * view.height * scale);
        var width = Math.round((x + 1) * view.width * scale) - left - gap, height = Math.round((y + 1) * view.height * scale) - top - gap;
        pen.fillStyle = colours[name] = colours[name] || style.getPropertyValue("--m-" + name);
        pen.fillRect(left, top, width, height);
        if (gap && texts[prompts[row] + "-" + examples[column]]) {
          pen.fillStyle = style.getPropertyValue(/wrong|unreadable|first|second/.test(name) ? "--paper" : "--ink");
          pen.fillRect(left + width / 2 - scale, top + height / 2 - scale, 2 * scale, 2 * scale);
        }
      });
    });
    if (at && view.rows.indexOf(at.row) >= 0 && view.columns.indexOf(at.column) >= 0) {
      var x = view.columns.indexOf(at.column) * view.width * scale, y = view.rows.indexOf(at.row) * view.height * scale;
      pen.strokeStyle = style.getPropertyValue("--ink");
      pen.lineWidth = 2 * scale;
      pen.strokeRect(x - scale, y - scale, view.width * scale + scale, view.height * scale + scale);
    }
  }

  function show(scorer, what) {
    current = views.find(function (view) { return view.dataset.scorer === scorer && view.dataset.show === what; });
    views.forEach(function (view) { view.hidden = view !== current; });
    exhibit.querySelectorAll(".switches button").forEach(function (button) {
      button.setAttribute("aria-pressed", button.dataset.scorer === scorer || button.dataset.show === what);
    });
    current.querySelector(".legend").after(detail, picked);
    draw(current);
    if (at) tell();
  }

  function add(tag, text, parent) {
    var element = document.createElement(tag);
    element.textContent = text;
    return parent.appendChild(element);
  }
  // Spells out the picked cell: its article, or what is known of a cell without one.
  function tell() {
    picked.hidden = false;
    picked.replaceChildren();
    if (texts[at.key]) { picked.append(texts[at.key].cloneNode(true)); return; }
    var states = views.filter(function (view) { return view.canvas.dataset.cells; }).map(function (view) {
      return view.querySelector("h3").textContent + ": " + said(view, at.row, at.column);
    });
    add("p", names[0][at.row], picked).dir = "auto";
    add("p", names[1][at.column], picked).dir = "auto";
    add("p", states.join("; ") + ".", picked);
    add("p", "The text of this cell is not on the page.", picked).className = "note";
    var near = nearest();
    if (near) add("button", "Nearest cell that is spelled out", picked).dataset.cell = near;
  }
  function nearest() {
    var y = current.rows.indexOf(at.row), x = current.columns.indexOf(at.column), best = null, least = Infinity;
    current.rows.forEach(function (row, v) {
      current.columns.forEach(function (column, u) {
        var key = prompts[row] + "-" + examples[column], distance = Math.abs(u - x) + 3 * Math.abs(v - y);
        if (texts[key] && distance < least) { best = key; least = distance; }
      });
    });
    return best;
  }
  function pick(key, row, column) {
    at = { key: key, row: row, column: column };
    draw(current);
    tell();
  }
  // Row and column on the map under the pointer.
  function under(event) {
    var box = current.canvas.getBoundingClientRect();
    var x = Math.floor((event.clientX - box.left) / current.width), y = Math.floor((event.clientY - box.top) / current.height);
    return [Math.max(0, Math.min(current.rows.length - 1, y)), Math.max(0, Math.min(current.columns.length - 1, x))];
  }
  function pickAt(y, x) {
    var row = current.rows[y], column = current.columns[x];
    pick(prompts[row] + "-" + examples[column], row, column);
  }

  exhibit.addEventListener("click", function (event) {
    var button = event.target.closest("button");
    if (event.target === current.canvas) pickAt.apply(null, under(event));
    if (!button) return;
    if (button.dataset.cell) {
      var parts = button.dataset.cell.split("-");
      pick(button.dataset.cell, prompts.indexOf(parts[0]), examples.indexOf(parts[1]));
      picked.scrollIntoView({ block: "nearest" });
    } else show(button.dataset.scorer || current.dataset.scorer, button.dataset.show || current.dataset.show);
  });
  exhibit.addEventListener("pointermove", function (event) {
    if (event.target !== current.canvas) { detail.textContent = hint; return; }
    var place = under(event), row = current.rows[place[0]], column = current.columns[place[1]];
    detail.textContent = said(current, row, column) + " \u2014 " + names[0][row] + " \u2014 " + names[1][column];
  });
  exhibit.addEventListener("pointerleave", function () { detail.textContent = hint; });
  exhibit.addEventListener("keydown", function (event) {
    var step = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
    if (!step || event.target !== current.canvas) return;
    event.preventDefault();
    var y = at ? current.rows.indexOf(at.row) : 0, x = at ? current.columns.indexOf(at.column) : -1;
    pickAt(Math.max(0, Math.min(current.rows.length - 1, y + step[0])), Math.max(0, Math.min(current.columns.length - 1, x + step[1])));
  });
  addEventListener("resize", function () { draw(current); });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", function () { draw(current); });
  exhibit.querySelector(".switches").hidden = detail.hidden = false;
  var shown = exhibit.querySelectorAll(".switches [data-show]");
  if (shown.length < 2) shown[0].parentNode.hidden = true;
  show(views[0].dataset.scorer, exhibit.dataset.start);
});
