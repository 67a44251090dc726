"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const grid = byId("cards");
  if (!grid) return;
  const cards = Array.from(grid.children);
  const opacity = byId("opacity");
  const search = byId("search");
  const order = byId("order");

  const number = (card, key) => Number(card.dataset[key] || "2");
  const orders = {
    name: (a, b) => a.dataset.name.localeCompare(b.dataset.name, undefined, { numeric: true }),
    score: (a, b) => number(a, "score") - number(b, "score"),
    accuracy: (a, b) => number(a, "accuracy") - number(b, "accuracy"),
  };

  const fade = () => {
    document.documentElement.style.setProperty("--overlay", opacity.value / 100);
    byId("opacity-value").value = `${opacity.value}%`;
  };
  const sort = () => {
    const compare = orders[order.value];
    grid.append(...(compare ? cards.slice().sort(compare) : cards));
  };
  const find = () => {
    const wanted = search.value.trim().toLowerCase();
    let shown = 0;
    for (const card of cards) {
      card.hidden = !card.textContent.toLowerCase().includes(wanted);
      shown += card.hidden ? 0 : 1;
    }
    byId("found").value = wanted ? `${shown} of ${cards.length}` : "";
  };

  opacity.addEventListener("input", fade);
  order.addEventListener("change", sort);
  search.addEventListener("input", find);
  // A browser may bring back the positions of an earlier visit.
  fade();
  sort();
  find();
  byId("toolbar").hidden = false;
})();
