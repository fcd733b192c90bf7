"use strict";
const page = document.querySelector("main");
const dark = matchMedia("(prefers-color-scheme: dark)");
let chosen = null;  // light or dark, if the reader has said so
let shown = JSON.parse(document.getElementById("shown").textContent);

function element(name, text, ...children) {
  const made = document.createElement(name);
  if (text !== "") made.textContent = text;
  made.append(...children);
  return made;
}

function table(columns, rows) {
  const head = element("tr", "", ...columns.map(name => element("th", name)));
  return element("table", "", head, ...rows.map(row => element("tr", "", ...row.map(cell => element("td", cell === null ? "–" : String(cell))))));
}

function config() {
  const ink = getComputedStyle(document.documentElement).getPropertyValue("--ink").trim();
  const line = getComputedStyle(document.documentElement).getPropertyValue("--line").trim();
  const words = {labelColor: ink, titleColor: ink};
  return {
    background: null, view: {stroke: line}, range: {category: shown.palette},
    axis: {...words, gridColor: line, domainColor: line, tickColor: line}, legend: words, header: words, title: {color: ink},
    text: {color: ink},
  };
}

async function draw(section, open) {
  const grid = element("div", "");
  grid.className = "pictures";
  for (const picture of section.pictures) {
    const place = element("div", "");
    const more = picture.table.more ? `, the first ${picture.table.rows.length}` : "";
    const rows = element("div", "");
    rows.className = "rows";
    const details = element("details", "", element("summary", `table${more}`), rows);
    details.addEventListener("toggle", () => {
      if (details.open && !rows.firstChild) rows.append(table(picture.table.columns, picture.table.rows));
    });
    details.open = open.has(picture.title);
    grid.append(element("figure", "", element("h3", picture.title), element("p", picture.words), place, details));
    const actions = {export: {png: true, svg: true}, source: false, compiled: false, editor: false};
    await vegaEmbed(place, picture.spec, {actions, renderer: "svg", config: config()});
  }
  const settings = element("details", "", element("summary", section.figures.columns.length > 2 ? "settings that differ" : "settings"),
    table(section.settings.columns, section.settings.rows));
  const title = shown.sections.length > 1 ? [element("h2", section.title)] : [];
  return [...title, table(section.figures.columns, section.figures.rows), settings, grid];
}

async function render() {
  document.documentElement.classList.toggle("dark", chosen === null ? dark.matches : chosen);
  document.querySelector("h1").textContent = shown.title;
  const open = new Set([...document.querySelectorAll("figure details[open]")].map(one => one.parentElement.querySelector("h3").textContent));
  const parts = [];
  for (const section of shown.sections) parts.push(...await draw(section, open));
  page.replaceChildren(...parts);
  document.body.dataset.drawn = document.querySelectorAll("figure svg.marks").length;
}

const button = document.querySelector("button");
button.hidden = false;
button.addEventListener("click", () => { chosen = !document.documentElement.classList.contains("dark"); render(); });
dark.addEventListener("change", render);
render();

async function ask() {
  try {
    const answer = await fetch("shown.json");
    if (answer.ok) {
      const text = await answer.text();
      if (text !== last) { last = text; shown = {...shown, ...JSON.parse(text)}; await render(); }
    }
  } catch { /* the server has ended: what is shown stays */ }
  setTimeout(ask, 2000);
}
let last = "";
if (shown.live) ask();
