// The page at /: choose a model and a class, then look at images, slide between two, send one, or read about the model.
// Plain JavaScript, nothing from elsewhere. What is shown is in the URL's fragment, so a view can be sent as a link.

import * as about from "./about.js";
import * as between from "./between.js";
import * as images from "./images.js";
import * as own from "./own.js";
import { $, ask, chosen, chosenClasses, current, make, say, state } from "./service.js";

const PANELS = { images, between, own, about };
const NEEDS = { images: "sample", between: "sample", own: "reconstruct" };
const tabs = [...document.querySelectorAll("[role=tab]")];
let view = "images";

// ---- the controls

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function showVersions(chosen) {
  const versions = state.models.filter((m) => m.name === $("model").value);
  const latest = versions.find((m) => m.latest);
  const titled = versions.map((m) => [m.version, m.latest ? `${m.version} (latest)` : m.version]);
  options($("version"), titled, chosen ?? latest?.version);
  if (!$("version").value) $("version").selectedIndex = 0;
  showModel();
}

function showModel(chosen) {
  const model = current();
  const several = model.task === "multilabel";
  const picked = chosen ?? chosenClasses();
  const known = picked.filter((name) => model.classes.includes(name));
  const checked = known.length || several ? known : model.classes.slice(0, 1);
  $("class-box").hidden = model.classes.length === 0;
  $("class-legend").textContent = several ? "Findings" : "Class";
  $("classes").replaceChildren(...model.classes.map((name) => make("label", {}, make("input", {
    type: several ? "checkbox" : "radio", name: "class", value: name, checked: checked.includes(name),
  }), name)));
  options($("latent"), model.latents.map((name) => [name, name]), $("latent").value);
  $("latent-box").hidden = model.latents.length < 2;
  about.drawVerdicts();
}

// ---- the panels

function draw() {
  if (!current()) return;
  const r = chosen();
  $("title").textContent = [`${r.model} ${r.version}`, r.labels.join(" + ")].filter(Boolean).join(" · ");
  $("truncation-value").textContent = r.truncation;
  const why = view in NEEDS ? about.refusal(NEEDS[view]) : "";
  const panel = $(view);
  if (view in NEEDS) {
    panel.querySelector(".refusal").textContent = why;
    panel.querySelector(".refusal").hidden = !why;
    panel.querySelector(".offer").hidden = Boolean(why);
  }
  if (why) say(""); else PANELS[view].draw();
  writeFragment();
}

function writeFragment() {
  const r = chosen();
  const parts = { model: r.model, version: r.version, ...(PANELS[view].fragment?.() ?? {}) };
  if (view !== "images") parts.view = view;
  if (r.latent !== "prior") parts.latent = r.latent;
  if (r.truncation !== 1) parts.truncation = r.truncation;
  const fragment = new URLSearchParams(parts);
  r.labels.forEach((name) => fragment.append("class", name));
  history.replaceState(null, "", `#${fragment}`);
}

function show(name) {
  view = name;
  for (const tab of tabs) {
    const selected = tab.getAttribute("aria-controls") === name;
    tab.setAttribute("aria-selected", selected);
    tab.tabIndex = selected ? 0 : -1;
    $(tab.getAttribute("aria-controls")).hidden = !selected;
  }
  draw();
}

function moveTab(event) { // arrow keys go round the tabs, as the ARIA pattern asks
  const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const at = tabs.indexOf(event.target);
  const next = by ? tabs.at((at + by) % tabs.length) : { Home: tabs[0], End: tabs.at(-1) }[event.key];
  if (!next) return;
  event.preventDefault();
  next.focus();
  show(next.getAttribute("aria-controls"));
}

// ---- start

async function start() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  try {
    const list = await (await ask("v1/models")).json();
    state.models = list.models.filter((m) => m.available);
    $("count").max = Math.min(100, list.max_count);
  } catch (error) {
    $("title").textContent = "No images";
    say(error.message);
    return;
  }
  $("key-box").hidden = true;
  say("");
  if (!state.models.length) {
    $("title").textContent = "No model is available";
    return;
  }
  document.body.classList.remove("waiting");
  const names = [...new Set(state.models.map((m) => m.name))];
  options($("model"), names.map((name) => [name, name]), wanted.get("model"));
  if (wanted.has("truncation")) $("truncation").value = wanted.get("truncation");
  images.restore(wanted);
  between.restore(wanted);
  showVersions(wanted.get("version"));
  if (wanted.has("class")) showModel(wanted.getAll("class"));
  if (current().latents.includes(wanted.get("latent"))) $("latent").value = wanted.get("latent");
  show(wanted.get("view") in PANELS ? wanted.get("view") : "images");
}

images.install(draw, (end, seed, index) => {
  between.setEnd(end, seed, index);
  show("between");
  $("tab-between").focus();
});
between.install(draw, writeFragment);
own.install();
about.install();
for (const tab of tabs) {
  tab.addEventListener("click", () => show(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", moveTab);
}
$("skip").addEventListener("click", (event) => {
  // Following the link would overwrite the fragment, which holds the view.
  event.preventDefault();
  $("content").focus();
});
$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("change", (event) => {
  if (event.target.id === "key") return;
  if (event.target.id === "model") showVersions(null);
  if (event.target.id === "version") showModel();
  if (["model", "version"].includes(event.target.id)) images.restart();
  draw();
});
$("truncation").addEventListener("input", () => { $("truncation-value").textContent = $("truncation").value; });
$("use-key").addEventListener("click", () => { state.key = $("key").value.trim() || null; start(); });
$("key").addEventListener("keydown", (event) => {
  if (event.key !== "Enter") return;
  event.preventDefault();
  $("use-key").click();
});

start();
