// The grid of images of one seed, each with its address, and their downloads.

import { $, address, ask, chosen, copy, curl, fileName, imagePath, make, say, state } from "./service.js";

const view = { start: 0, shown: [], open: -1, blobs: [], drawing: 0, asked: 0 };

export const restart = () => { view.start = 0; };

export function restore(wanted) {
  for (const id of ["seed", "count"]) if (wanted.has(id)) $(id).value = wanted.get(id);
  view.start = Math.max(0, Math.trunc(Number(wanted.get("start")) || 0));
}

export const fragment = () => ({ seed: $("seed").value, count: $("count").value, start: view.start });

function request() {
  return { ...chosen(), count: Number($("count").value), seed: Number($("seed").value), start: view.start };
}

export function draw() {
  if (!$("images-form").reportValidity()) return;
  const drawing = ++view.drawing;
  const r = request();
  view.blobs.forEach(URL.revokeObjectURL);
  view.blobs = [];
  say("");
  view.shown = Array.from({ length: r.count }, (_, i) => r.start + i).map((index) => ({
    index, address: address(r, r.seed, index), url: imagePath(r, r.seed, index), source: null, request: r,
  }));
  $("range").textContent = `${r.start} to ${r.start + r.count - 1}`;
  $("earlier").disabled = r.start === 0;
  $("grid").replaceChildren(...view.shown.map((item, at) => tile(item, at, drawing)));
}

function tile(item, at, drawing) {
  const r = item.request;
  const classes = r.labels.join(" and ") || "no class";
  const image = make("img", { alt: `Synthetic image, ${classes}, seed ${r.seed}, index ${item.index}` });
  const button = make(
    "button", { type: "button", className: "tile", title: "Show its address" },
    make("div", { className: "well" }, image),
    make(
      "div", { className: "caption" },
      make("span", { className: "mark", textContent: "Synthetic" }), make("span", { textContent: item.index }),
    ),
  );
  button.addEventListener("click", () => open(at));
  load(item, image, button, drawing);
  return make("li", {}, button);
}

async function load(item, image, button, drawing) {
  const failed = async () => {
    if (drawing !== view.drawing) return;
    button.classList.add("failed");
    if (view.asked === drawing) return;
    view.asked = drawing; // once: they mostly fail together, and each question counts against a limit
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
    if (drawing !== view.drawing) return;
    item.source = URL.createObjectURL(blob);
    view.blobs.push(item.source);
    image.src = item.source;
  } catch (error) {
    button.classList.add("failed");
    say(error.message);
  }
}

function open(at) {
  const item = view.shown[at];
  if (!item) return;
  view.open = at;
  const r = item.request;
  $("detail-image").src = item.source ?? item.url;
  $("detail-image").alt = `Synthetic image ${item.address}`;
  $("detail-title").textContent = `Image ${item.index} of seed ${r.seed}`;
  $("detail-address").textContent = item.address;
  $("detail-model").textContent = `${r.model}, version ${r.version}`;
  $("detail-class").textContent = r.labels.join(" + ") || "none";
  $("detail-seed").textContent = r.seed;
  $("detail-index").textContent = item.index;
  $("detail-curl").textContent = curl(item.url);
  $("save").href = item.source ?? item.url;
  $("save").download = fileName(item.address, "png");
  $("previous").disabled = at === 0;
  $("next").disabled = at === view.shown.length - 1;
  if (!$("detail").open) $("detail").showModal();
}

async function download(button) {
  if (!$("images-form").reportValidity()) return;
  button.disabled = true;
  say("");
  try {
    const r = request();
    const response = await ask("v1/samples", {
      method: "POST",
      headers: { "Content-Type": "application/json", Accept: button.dataset.accept },
      body: JSON.stringify(r),
    });
    const link = make("a", { href: URL.createObjectURL(await response.blob()) });
    link.download = `synthetic_${fileName(address(r, r.seed, r.start), button.dataset.suffix)}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  } catch (error) {
    say(error.message);
  }
  button.disabled = false;
}

/** Wire the panel. `changed` is called after what it shows has changed, `way` to show the way from or to an image. */
export function install(changed, way) {
  const move = (by) => { view.start = Math.max(0, view.start + by * Number($("count").value)); changed(); };
  $("images-form").addEventListener("submit", (event) => event.preventDefault());
  $("images-form").addEventListener("change", (event) => {
    if (event.target.id === "seed") restart();
    changed();
  });
  $("new-seed").addEventListener("click", () => {
    $("seed").value = crypto.getRandomValues(new Uint32Array(1))[0];
    restart();
    changed();
  });
  $("earlier").addEventListener("click", () => move(-1));
  $("later").addEventListener("click", () => move(1));
  $("close").addEventListener("click", () => $("detail").close());
  $("previous").addEventListener("click", () => open(view.open - 1));
  $("next").addEventListener("click", () => open(view.open + 1));
  $("detail").addEventListener("keydown", (event) => {
    if (event.key === "ArrowLeft") open(view.open - 1);
    if (event.key === "ArrowRight") open(view.open + 1);
  });
  $("copy-address").addEventListener("click", (event) => copy(event.target, $("detail-address").textContent));
  $("copy-curl").addEventListener("click", (event) => copy(event.target, $("detail-curl").textContent));
  for (const [id, end] of [["leave-from", "from"], ["lead-to", "to"]]) {
    $(id).addEventListener("click", () => {
      const item = view.shown[view.open];
      $("detail").close();
      way(end, item.request.seed, item.index);
    });
  }
  for (const button of document.querySelectorAll("[data-accept]")) {
    button.addEventListener("click", () => download(button));
  }
}
