// The page at /: choose a model, class, seed and count; see the images that those addresses name.
// Plain JavaScript, nothing from elsewhere. What is shown is in the URL's fragment, so a view can be sent as a link.
"use strict";

const $ = (id) => document.getElementById(id);
const state = { models: [], maxCount: 100, key: null, start: 0, shown: [], open: -1, blobs: [], drawing: 0 };

const headers = (more = {}) => (state.key ? { ...more, "X-API-Key": state.key } : more);

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch {
    throw new Error("The service does not answer; check that it runs, then reload the page.");
  }
  if (response.ok) return response;
  if (response.status === 401) $("key-box").hidden = false;
  const problem = await response.json().catch(() => ({ detail: `the service answered ${response.status}` }));
  throw new Error(problem.detail);
}

function say(text) {
  $("status").textContent = text;
  $("status").hidden = !text;
}

// ---- the controls

const current = () => state.models.find((m) => m.name === $("model").value && m.version === $("version").value);
const chosenClasses = () => [...$("classes").querySelectorAll(":checked")].map((box) => box.value);

function options(select, values, chosen) {
  select.replaceChildren(...values.map(([value, text]) => new Option(text, value, false, value === chosen)));
}

function showVersions(chosen) {
  const versions = state.models.filter((m) => m.name === $("model").value);
  const latest = versions.find((m) => m.latest);
  options($("version"), versions.map((m) => [m.version, m.latest ? `${m.version} (latest)` : m.version]), chosen ?? latest?.version);
  showClasses();
}

function showClasses(chosen) {
  const model = current();
  const several = model.task === "multilabel";
  const picked = chosen ?? chosenClasses();
  const known = picked.filter((name) => model.classes.includes(name));
  const checked = known.length || several ? known : model.classes.slice(0, 1);
  $("class-box").hidden = model.classes.length === 0;
  $("class-legend").textContent = several ? "Findings" : "Class";
  $("classes").replaceChildren(...model.classes.map((name) => {
    const box = Object.assign(document.createElement("input"), {
      type: several ? "checkbox" : "radio", name: "class", value: name, checked: checked.includes(name),
    });
    const label = document.createElement("label");
    label.append(box, name);
    return label;
  }));
  options($("latent"), model.latents.map((name) => [name, name]), $("latent").value);
  $("latent-box").hidden = model.latents.length < 2;
  $("card").href = `v1/models/${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}/card`;
  $("about").href = `v1/models/${encodeURIComponent(model.name)}/${encodeURIComponent(model.version)}`;
}

// ---- addresses

function request() {
  const model = current();
  return {
    model: model.name, version: model.version, labels: model.classes.filter((name) => chosenClasses().includes(name)),
    count: Number($("count").value), seed: Number($("seed").value), start: state.start,
    latent: $("latent").value || "prior", truncation: Number($("truncation").value),
  };
}

function query(r) {
  const parts = [];
  if (r.latent !== "prior") parts.push(`latent=${encodeURIComponent(r.latent)}`);
  if (r.truncation !== 1) parts.push(`truncation=${r.truncation}`);
  return parts.length ? `?${parts.join("&")}` : "";
}

const address = (r, index) => `${r.model}/${r.version}/${r.labels.join("+") || "none"}/${r.seed}/${index}${query(r)}`;

function url(r, index) {
  const classes = r.labels.map(encodeURIComponent).join("+") || "none";
  return `v1/models/${encodeURIComponent(r.model)}/${encodeURIComponent(r.version)}/images/${classes}/${r.seed}/${index}.png${query(r)}`;
}

// ---- the grid

function draw() {
  if (!current() || !$("controls").reportValidity()) return;
  const drawing = ++state.drawing;
  const r = request();
  state.blobs.forEach(URL.revokeObjectURL);
  state.blobs = [];
  say("");
  state.shown = Array.from({ length: r.count }, (_, i) => ({
    index: r.start + i, address: address(r, r.start + i), url: url(r, r.start + i), source: null, request: r,
  }));
  $("title").textContent = [`${r.model} ${r.version}`, r.labels.join(" + ") || null, `seed ${r.seed}`].filter(Boolean).join(" · ");
  $("range").textContent = `${r.start} to ${r.start + r.count - 1}`;
  $("earlier").disabled = r.start === 0;
  $("truncation-value").textContent = r.truncation;
  $("grid").replaceChildren(...state.shown.map((item, at) => tile(item, at, drawing)));
  const fragment = new URLSearchParams({ model: r.model, version: r.version, seed: r.seed, count: r.count, start: r.start });
  r.labels.forEach((name) => fragment.append("class", name));
  if (r.latent !== "prior") fragment.set("latent", r.latent);
  if (r.truncation !== 1) fragment.set("truncation", r.truncation);
  history.replaceState(null, "", `#${fragment}`);
}

function tile(item, at, drawing) {
  const image = Object.assign(document.createElement("img"), {
    alt: `Synthetic image, ${item.request.labels.join(" and ") || "no class"}, seed ${item.request.seed}, index ${item.index}`,
  });
  const well = Object.assign(document.createElement("div"), { className: "well" });
  well.append(image);
  const caption = Object.assign(document.createElement("div"), { className: "caption" });
  caption.append(
    Object.assign(document.createElement("span"), { className: "mark", textContent: "Synthetic" }),
    Object.assign(document.createElement("span"), { textContent: item.index }),
  );
  const button = Object.assign(document.createElement("button"), { type: "button", className: "tile", title: "Show its address" });
  button.append(well, caption);
  button.addEventListener("click", () => open(at));
  load(item, image, button, drawing);
  const place = document.createElement("li");
  place.append(button);
  return place;
}

async function load(item, image, button, drawing) {
  const failed = async () => {
    if (drawing !== state.drawing) return;
    button.classList.add("failed");
    await ask(item.url).catch((error) => say(error.message)); // an <img> does not tell why
  };
  if (!state.key) {
    item.source = item.url;
    image.addEventListener("error", failed);
    image.src = item.url;
    return;
  }
  try { // an <img> can't send the key
    const blob = await (await ask(item.url)).blob();
    if (drawing !== state.drawing) return;
    item.source = URL.createObjectURL(blob);
    state.blobs.push(item.source);
    image.src = item.source;
  } catch (error) {
    button.classList.add("failed");
    say(error.message);
  }
}

// ---- one image

function open(at) {
  const item = state.shown[at];
  if (!item) return;
  state.open = at;
  const r = item.request;
  const absolute = new URL(item.url, document.baseURI).href;
  const curl = `curl ${state.key ? '-H "X-API-Key: $KEY" ' : ""}-o image.png '${absolute.replaceAll("'", "%27")}'`;
  $("detail-image").src = item.source ?? item.url;
  $("detail-image").alt = `Synthetic image ${item.address}`;
  $("detail-title").textContent = `Image ${item.index} of seed ${r.seed}`;
  $("detail-address").textContent = item.address;
  $("detail-model").textContent = `${r.model}, version ${r.version}`;
  $("detail-class").textContent = r.labels.join(" + ") || "none";
  $("detail-seed").textContent = r.seed;
  $("detail-index").textContent = item.index;
  $("detail-curl").textContent = curl;
  $("save").href = item.source ?? item.url;
  $("save").download = `${item.address.replace(/[^\w.+-]+/g, "_")}.png`;
  $("previous").disabled = at === 0;
  $("next").disabled = at === state.shown.length - 1;
  if (!$("detail").open) $("detail").showModal();
}

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch { // no clipboard where the page isn't on localhost or https
    button.textContent = "Select and copy it below";
  }
  setTimeout(() => { button.textContent = label; }, 1500);
}

async function download(button) {
  if (!$("controls").reportValidity()) return;
  button.disabled = true;
  say("");
  try {
    const r = request();
    const response = await ask("v1/samples", {
      method: "POST", headers: { "Content-Type": "application/json", Accept: button.dataset.accept }, body: JSON.stringify(r),
    });
    const link = document.createElement("a");
    link.href = URL.createObjectURL(await response.blob());
    link.download = `synthetic_${address(r, r.start).replace(/[^\w.+-]+/g, "_")}.${button.dataset.suffix}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
}

async function openWithKey(event) { // a link can't send the key either
  if (!state.key) return;
  event.preventDefault();
  try {
    window.open(URL.createObjectURL(await (await ask(event.target.href)).blob()));
  } catch (error) {
    say(error.message);
  }
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
  for (const id of ["seed", "count", "truncation"]) if (wanted.has(id)) $(id).value = wanted.get(id);
  state.start = Math.max(0, Math.trunc(Number(wanted.get("start")) || 0));
  showVersions(wanted.get("version"));
  if (!current()) showVersions(null);
  if (wanted.has("class")) showClasses(wanted.getAll("class"));
  if (current().latents.includes(wanted.get("latent"))) $("latent").value = wanted.get("latent");
  draw();
}

const move = (by) => { state.start = Math.max(0, state.start + by * Number($("count").value)); draw(); };

$("controls").addEventListener("submit", (event) => event.preventDefault());
$("controls").addEventListener("change", (event) => {
  if (event.target.id === "key") return;
  if (event.target.id === "model") showVersions(null);
  if (event.target.id === "version") showClasses();
  if (["model", "version", "seed"].includes(event.target.id)) state.start = 0;
  draw();
});
$("truncation").addEventListener("input", () => { $("truncation-value").textContent = $("truncation").value; });
$("new-seed").addEventListener("click", () => {
  $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
  state.start = 0;
  draw();
});
$("earlier").addEventListener("click", () => move(-1));
$("later").addEventListener("click", () => move(1));
$("previous").addEventListener("click", () => open(state.open - 1));
$("next").addEventListener("click", () => open(state.open + 1));
$("detail").addEventListener("keydown", (event) => {
  if (event.key === "ArrowLeft") open(state.open - 1);
  if (event.key === "ArrowRight") open(state.open + 1);
});
$("copy-address").addEventListener("click", (event) => copy(event.target, $("detail-address").textContent));
$("copy-curl").addEventListener("click", (event) => copy(event.target, $("detail-curl").textContent));
for (const id of ["card", "about"]) $(id).addEventListener("click", openWithKey);
$("use-key").addEventListener("click", () => { state.key = $("key").value.trim() || null; start(); });
$("key").addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); $("use-key").click(); } });
document.querySelectorAll("[data-accept]").forEach((button) => button.addEventListener("click", () => download(button)));

start();
