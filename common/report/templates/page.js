"use strict";
// What the page does by itself: theme, filters, enlarged pictures, the map. Without it all is shown.
const root = document.documentElement;
root.classList.add("scripted");
const all = (query, inside = document) => [...inside.querySelectorAll(query)];

// Theme: the system's until a choice is made, which is kept where the browser allows it.
const themes = ["auto", "light", "dark"];
const theme = document.getElementById("theme");
function dress(name) {
  if (name === "auto") delete root.dataset.theme;
  else root.dataset.theme = name;
  theme.textContent = "Theme: " + name;
}
let worn = "auto";
try { worn = localStorage.getItem("report-theme") || "auto"; } catch { /* a file may have no storage */ }
dress(themes.includes(worn) ? worn : "auto");
theme.addEventListener("click", () => {
  const next = themes[(themes.indexOf(root.dataset.theme || "auto") + 1) % themes.length];
  dress(next);
  try { localStorage.setItem("report-theme", next); } catch { /* as above */ }
});

// Galleries: rows by verdict and by text, in all groups at once.
for (const gallery of all("[data-gallery]")) {
  const [text, verdict, told] = ["input[type=search]", "select", "output"].map((q) => gallery.querySelector(q));
  const groups = all(".group", gallery);
  const sift = () => {
    const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
    const counts = groups.map((group) => {
      const rows = all(".row", group);
      for (const row of rows) {
        const fits = !verdict.value || row.dataset.verdict === verdict.value;
        row.hidden = !(fits && words.every((word) => row.dataset.text.includes(word)));
      }
      return [rows.filter((row) => !row.hidden).length, rows.length];
    });
    const chosen = all("input[type=radio]", gallery).findIndex((radio) => radio.checked);
    told.textContent = `${counts[chosen][0]} of ${counts[chosen][1]} shown`;
  };
  gallery.addEventListener("input", sift);
  sift();
}

// Enlarged pictures: Escape closes, arrows go to the neighbors.
const zoom = document.getElementById("zoom");
if (zoom) {
  const picture = zoom.insertBefore(new Image(), zoom.firstChild);
  const caption = zoom.querySelector("p");
  let opener = null;
  let row = [];
  const show = (button) => {
    opener = button;
    picture.src = button.querySelector("img").src;
    picture.alt = button.querySelector("img").alt;
    caption.textContent = button.dataset.about;
  };
  const step = (by) => show(row[(row.indexOf(opener) + by + row.length) % row.length]);
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-about]");
    if (!button) return;
    row = all("button[data-about]", button.closest(".tiles, .matches"));
    for (const word of ["before", "after"]) zoom.querySelector("." + word).hidden = row.length < 2;
    show(button);
    zoom.showModal();
  });
  zoom.querySelector(".before").addEventListener("click", () => step(-1));
  zoom.querySelector(".after").addEventListener("click", () => step(1));
  zoom.querySelector(".close").addEventListener("click", () => zoom.close());
  zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
  zoom.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (by && row.length > 1) { step(by); event.preventDefault(); }
  });
  zoom.addEventListener("close", () => opener.focus());  // that of the picture shown last
}

// The map: the nearest point has its picture shown, by pointer or by arrow keys.
const plane = document.getElementById("plane");
if (plane) {
  const { points, cell, columns } = JSON.parse(document.getElementById("points").textContent);
  const ring = document.getElementById("ring");
  const tip = document.getElementById("tip");
  const cut = tip.querySelector(".cut");
  const sheet = tip.querySelector("img");
  const said = document.getElementById("said");
  const marks = all("#marks > *", plane);
  const scale = 132 / cell;
  const words = { right: "query, right", wrong: "query, wrong", none: "query of nothing known", unknown: "query", gallery: "gallery" };
  let at = -1;
  const show = (place) => {
    at = place;
    const [x, y, id, label, mark, picture] = points[place];
    ring.setAttribute("cx", x);
    ring.setAttribute("cy", y);
    ring.removeAttribute("display");
    sheet.hidden = picture < 0;
    cut.lastElementChild.textContent = picture < 0 ? "no picture" : "";
    sheet.style.width = columns * cell * scale + "px";
    sheet.style.left = -(picture % columns) * cell * scale + "px";
    sheet.style.top = -Math.floor(picture / columns) * cell * scale + "px";
    tip.querySelector("b").textContent = id;
    const [first, second] = all("span", tip).slice(-2);
    first.textContent = label;
    second.textContent = words[mark];
    said.textContent = `${id}, ${label || "no label"}, ${words[mark]}`;
    tip.hidden = false;
    const box = plane.getBoundingClientRect();
    const spot = ring.getBoundingClientRect();
    const left = spot.right - box.left + 8;
    const over = left + tip.offsetWidth > box.width;
    tip.style.left = Math.max(over ? spot.left - box.left - tip.offsetWidth - 8 : left, 0) + "px";
    tip.style.top = Math.max(Math.min(spot.top - box.top - 60, box.height - tip.offsetHeight), 0) + "px";
  };
  const hide = () => {
    tip.hidden = true;
    ring.setAttribute("display", "none");
  };
  const lit = (place) => !marks[place].classList.contains("off");
  const best = (cost) => {
    let found = -1;
    let least = Infinity;
    points.forEach((point, place) => {
      const value = lit(place) ? cost(point, place) : Infinity;
      if (value < least) [found, least] = [place, value];
    });
    return found;
  };
  const under = (event) => {
    const spot = new DOMPoint(event.clientX, event.clientY).matrixTransform(plane.getScreenCTM().inverse());
    const reach = 24 / plane.getScreenCTM().a;
    const near = best(([x, y]) => { const far = Math.hypot(x - spot.x, y - spot.y); return far < reach ? far : Infinity; });
    if (near < 0) hide();
    else show(near);
  };
  plane.addEventListener("pointermove", under);
  plane.addEventListener("pointerdown", under);
  plane.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") hide(); });
  plane.addEventListener("focus", () => { if (plane.matches(":focus-visible")) show(at < 0 || !lit(at) ? best((_, place) => place) : at); });
  plane.addEventListener("blur", hide);
  plane.addEventListener("keydown", (event) => {
    const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key] || [0, 0];
    if (event.key === "Escape") hide();
    else if (event.key === "Home") show(best((_, place) => place));
    else if (event.key === "End") show(best((_, place) => -place));
    else if (event.key === "PageDown" || event.key === "PageUp") {
      const way = event.key === "PageDown" ? 1 : -1;  // every point, one after the other
      show(best((_, place) => ((place - at) * way + points.length) % points.length || points.length));
    } else if (dx || dy) {
      const [x0, y0] = points[Math.max(at, 0)];
      const next = best(([x, y]) => {
        const along = (x - x0) * dx + (y - y0) * dy;
        const aside = Math.abs((x - x0) * dy) + Math.abs((y - y0) * dx);
        return along > 0 ? along * along + 4 * aside * aside : Infinity;
      });
      if (next >= 0) show(next);
    } else return;
    event.preventDefault();
  });
  for (const key of all("button[data-class]")) {
    key.addEventListener("click", () => {
      const pressed = key.getAttribute("aria-pressed") !== "true";
      for (const other of all("button[data-class]")) other.setAttribute("aria-pressed", String(pressed && other === key));
      for (const mark of marks) mark.classList.toggle("off", pressed && !mark.classList.contains(key.dataset.class));
      hide();
    });
  }
}
