"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const grid = byId("cards");
  const cards = grid ? Array.from(grid.children) : [];
  const refusals = Array.from(document.querySelectorAll("[data-refusal]"));
  const opacity = byId("opacity");
  const labels = byId("labels");
  const order = byId("order");
  const value = (id, otherwise) => (byId(id) ? byId(id).value : otherwise);

  // What a card does not have comes last.
  const number = (card, key) => (card.dataset[key] === "" ? 2 : Number(card.dataset[key]));
  const ascending = (key) => (a, b) => number(a, key) - number(b, key);
  const orders = {
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    worst: ascending("quality"),
    uncertain: ascending("margin"),
    accuracy: ascending("accuracy"),
  };

  const fade = () => {
    document.documentElement.style.setProperty("--overlay", opacity.value / 100);
    byId("opacity-value").value = `${opacity.value}%`;
    document.body.classList.toggle("without-labels", !labels.checked);
  };
  const sort = () => {
    const compare = orders[order.value];
    grid.append(...(compare ? cards.slice().sort(compare) : cards));
  };
  const find = () => {
    const words = value("search", "").trim().toLowerCase();
    const [status, picked, wanted] = [value("status", ""), value("picked", ""), value("class", "")];
    const [least, most] = [Number(value("least", "") || 0), Number(value("most", "") || 1)];
    const fits = (card) => {
      const score = card.dataset.score === "" ? 0 : Number(card.dataset.score);
      return (
        status !== "quarantined" &&
        (!wanted || card.dataset.classes.split(" ").includes(wanted)) &&
        (!picked || card.dataset.picked.split(" ").includes(picked)) &&
        score >= least && score <= most &&
        card.textContent.toLowerCase().includes(words)
      );
    };
    const failed = (row) =>
      status !== "labelled" && !wanted && !picked && row.textContent.toLowerCase().includes(words);
    for (const card of cards) card.hidden = !fits(card);
    for (const row of refusals) row.hidden = !failed(row);
    const shown = cards.filter((card) => !card.hidden).length;
    const refused = refusals.filter((row) => !row.hidden).length;
    if (byId("found")) {
      byId("found").value = `${shown} of ${cards.length} images` +
        (refusals.length ? `, ${refused} of ${refusals.length} quarantined` : "");
    }
    if (status === "quarantined" && byId("quarantine")) byId("quarantine").open = true;
  };

  const press = (pane) => {
    pane.setAttribute("aria-pressed", String(pane.getAttribute("aria-pressed") !== "true"));
  };
  const step = (by) => {
    const visible = Array.from(grid.children).filter((card) => !card.hidden);
    if (!visible.length) return;
    const at = visible.indexOf(document.activeElement.closest("article"));
    const next = at < 0 ? (by > 0 ? 0 : visible.length - 1) : at + by;
    visible[Math.max(0, Math.min(visible.length - 1, next))].focus();
  };
  const move = (by) => {
    opacity.value = Number(opacity.value) + by;
    fade();
  };
  const keys = {
    j: () => step(1),
    ArrowRight: () => step(1),
    k: () => step(-1),
    ArrowLeft: () => step(-1),
    Home: () => step(-Infinity),
    End: () => step(Infinity),
    l: () => { labels.checked = !labels.checked; fade(); },
    "[": () => move(-10),
    "]": () => move(10),
    "/": () => { byId("filters").open = true; byId("search").focus(); },
    " ": () => document.activeElement.querySelectorAll(".pane").forEach(press),
  };
  document.addEventListener("keydown", (event) => {
    const { target, key } = event;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (key === "Escape" && target.matches("input, select")) {
      target.blur();
      return;
    }
    if (target.matches("input, select, textarea")) return;
    const onCard = target.matches("article");
    if ([" ", "Home", "End", "ArrowLeft", "ArrowRight"].includes(key) && !onCard) return;
    if (!(key in keys) || (key === "/" && !byId("search"))) return;
    event.preventDefault();
    keys[key]();
  });

  if (!cards.length) return;
  for (const pane of document.querySelectorAll("button.pane")) {
    pane.addEventListener("click", () => press(pane));
  }
  opacity.addEventListener("input", fade);
  labels.addEventListener("change", fade);
  for (const id of ["search", "class", "status", "picked", "least", "most"]) {
    if (byId(id)) byId(id).addEventListener("input", find);
  }
  if (order) {
    order.addEventListener("change", sort);
    sort();
  }
  // A browser may bring back the positions of an earlier visit.
  fade();
  find();
  byId("toolbar").hidden = false;
  if (byId("filters")) byId("filters").hidden = false;
})();
